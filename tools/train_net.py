#!/usr/bin/env python3
"""Train a model, or evaluate one with --eval-only, as described by a config file.

The two stages are two configs: the second starts from MODEL.WEIGHTS, in an OUTPUT_DIR of its own.
"""

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from amwc_d2 import Trainer
from amwc_d2.config import load_config, use_available_device
from amwc_d2.data.model_card import check_classes
from amwc_d2.engine.launch import launch


def setup(args):
    """Build the config from the command line, and set up logging, OUTPUT_DIR and the seed."""
    cfg = load_config(args.config_file, args.opts)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="amwc_d2")
    use_available_device(cfg, args.num_gpus)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args):
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        check_classes(cfg, model.card)
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
