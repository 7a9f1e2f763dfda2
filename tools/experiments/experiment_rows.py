"""What reproduce.py compares: recipes, rows of the table, their differences, settings to search.

Options are keys below MODEL.AMWC, or those of Detectron2's SOLVER and TEST, on top of the recipe of
stage 2.
"""

RECIPES = {
    "toy": {"config": "Toy-PanopticSegmentation/amwc_R18", "held": 120, "copies": 2},
    "dsb2018": {"config": "DSB2018-PanopticSegmentation/amwc_R18", "held": 60, "copies": 2},
}
SEEDS = 3  # of stage 1; stage 2's own seeds come on top

# Row -> options of stage 2 on top of the recipe's. All start from the same checkpoint of stage 1.
CONTROLS = ("baseline", "calibrated")  # nothing trains
ORACLES = {  # the baseline with true costs, for the first seed
    "baseline, semantic oracle": ["TEST.ORACLE", "semantic"],
    "baseline, affinity oracle": ["TEST.ORACLE", "affinity"],
}
REPEATED = {  # for every seed of stage 1
    "end to end": [],
    "continued cross-entropy": ["LOSS.PQ_WEIGHT", 0.0, "LOSS.CROSS_ENTROPY_WEIGHT", 1.0],
    "end to end, second seed": [],
    "N = 1": ["GRADIENT.NUM_SAMPLES", 1],
    "N = 5": ["GRADIENT.NUM_SAMPLES", 5],
    "separate losses": ["LOSS.PQ_WEIGHT", 0.0, "RESEARCH.SEPARATE_WEIGHT", 10.0],
    "no cost dropout": ["COST_DROPOUT", 0.0],
}
ONCE = {  # for the first one
    "calibrated, then end to end": [],
    "surrogate on the grid": ["RESEARCH.FULL_RESOLUTION", False],
    "surrogate of the paper": ["LOSS.SURROGATE", "paper"],
    "classifiers only": ["TRAINED_LAYERS", "classifiers"],
    "PQ and Fenchel-Young": ["RESEARCH.FENCHEL_YOUNG_WEIGHT", 1.0],
    "Fenchel-Young": ["LOSS.PQ_WEIGHT", 0.0, "RESEARCH.FENCHEL_YOUNG_WEIGHT", 1.0],
    "same solver": ["GRADIENT.ESTIMATOR", "same_solver"],
    "literal": ["GRADIENT.ESTIMATOR", "literal"],
    "500 steps": ["SOLVER.MAX_ITER", 500],
}
UNTRAINED = (*CONTROLS, *ORACLES)
ROWS = {**{row: [] for row in CONTROLS}, **REPEATED, **ONCE, **ORACLES}
SEED_OF_ROW = {"end to end, second seed": 100}
# Differences that the table states: row minus row.
COMPARISONS = [
    ("end to end", "baseline"),
    ("calibrated", "baseline"),
    ("continued cross-entropy", "baseline"),
    ("end to end", "calibrated"),
    ("end to end", "continued cross-entropy"),
    ("calibrated, then end to end", "calibrated"),
    ("calibrated, then end to end", "end to end"),
    ("N = 5", "N = 1"),
    ("end to end", "separate losses"),
    ("end to end", "no cost dropout"),
    *(("end to end", row) for row in ONCE if row != "calibrated, then end to end"),
]
# What --search tries, on held-back images, one seed: the recipe, and one change of it at a time.
SEARCH = {
    "baseline": [],
    "calibrated": [],
    "default": [],
    **{f"lambda {low:g} to {high:g}": ["GRADIENT.LAMBDA_RANGE", [low, high]]
       for low, high in ((20.0, 200.0), (100.0, 1000.0), (200.0, 2000.0), (500.0, 5000.0),
                         (2000.0, 20000.0))},
    **{f"lambda {low:g} to {high:g}, central":
       ["GRADIENT.LAMBDA_RANGE", [low, high], "RESEARCH.TWO_SIDED", 1.0]
       for low, high in ((20.0, 200.0), (100.0, 1000.0), (200.0, 2000.0), (500.0, 5000.0))},
    **{f"lambda {low:g} to {high:g}, two-sided {share}":
       ["GRADIENT.LAMBDA_RANGE", [low, high], "RESEARCH.TWO_SIDED", share]
       for low, high, share in ((500.0, 5000.0, 0.3), (1000.0, 10000.0, 0.2))},
    "lambda 1000 to 10000 by area 100": [
        "GRADIENT.LAMBDA_RANGE", [1000.0, 10000.0], "RESEARCH.LAMBDA_AREA", 100.0],
    **{f"lambda 1000 to 10000 by area 200, two-sided 0.2, quarter the rate{more}": [
        "GRADIENT.LAMBDA_RANGE", [1000.0, 10000.0], "RESEARCH.LAMBDA_AREA", 200.0,
        "RESEARCH.TWO_SIDED", 0.2, "SOLVER.BASE_LR", 0.0001, *options]
       for more, options in (("", []), (", normalised", ["RESEARCH.NORMALIZE_COSTS", True]))},
    "flip rate 0.5 %": ["RESEARCH.TARGET_FLIP_RATE", 0.005],
    "lambda by area": ["RESEARCH.LAMBDA_AREA", 50.0],
    "classifiers": ["TRAINED_LAYERS", "classifiers"],
    "classifiers, four times the rate": ["TRAINED_LAYERS", "classifiers", "SOLVER.BASE_LR", 0.0016],
    "400 steps": ["SOLVER.MAX_ITER", 400],
    "half the rate, twice as long": ["SOLVER.BASE_LR", 0.0002, "SOLVER.MAX_ITER", 400],
    "two and a half times the rate": ["SOLVER.BASE_LR", 0.001],
    "three times the batch": ["SOLVER.IMS_PER_BATCH", 36],
    "no cost dropout": ["COST_DROPOUT", 0.0],
    "cost dropout 0.3": ["COST_DROPOUT", 0.3],
    "cost scales, 20 times the rate": ["LEARN_COST_SCALES", True,
                                       "SOLVER.LR_FACTORS", [["costs.*", 20.0]]],
    "noise 0.5": ["RESEARCH.NOISE", 0.5],
    "proximal 0.2": ["RESEARCH.PROXIMAL", 0.2],
    "normalised costs": ["RESEARCH.NORMALIZE_COSTS", True],
    "surrogate on the grid": ["RESEARCH.FULL_RESOLUTION", False],
    "surrogate of the paper": ["LOSS.SURROGATE", "paper"],
    "surrogate of the authors": ["LOSS.SURROGATE", "authors"],
    "missed objects 0.5": ["RESEARCH.MISS_WEIGHT", 0.5],
    "same solver": ["GRADIENT.ESTIMATOR", "same_solver"],
    "Fenchel-Young": ["LOSS.PQ_WEIGHT", 0.0, "RESEARCH.FENCHEL_YOUNG_WEIGHT", 1.0],
    "PQ and Fenchel-Young": ["RESEARCH.FENCHEL_YOUNG_WEIGHT", 1.0],
    "PQ and cross-entropy 0.1": ["LOSS.CROSS_ENTROPY_WEIGHT", 0.1],
}  # fmt: skip
