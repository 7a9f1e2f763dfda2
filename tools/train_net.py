#!/usr/bin/env python3
"""Train a model, or evaluate one with --eval-only, as described by a config file.

The two stages are two configs: the second starts from MODEL.WEIGHTS, in an OUTPUT_DIR of its own.
With --resume the same command continues a run from its newest whole checkpoint, as if it had not
been interrupted; where there is none it starts. SIGTERM and Ctrl-C save a checkpoint first.
"""

from contextlib import ExitStack

from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from amwc_d2 import Trainer
from amwc_d2.config import load_config, use_available_device
from amwc_d2.data.model_card import check_classes
from amwc_d2.engine.checkpoint import AMWCCheckpointer
from amwc_d2.engine.interruption import Interruption
from amwc_d2.engine.launch import launch
from amwc_d2.engine.output_folder import check_unused, claim
from amwc_d2.engine.settings import check_settings


def setup(cfg, args):
    """Set up logging, OUTPUT_DIR and the seed; the config is complete afterwards."""
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="amwc_d2")
    use_available_device(cfg, args.num_gpus)
    cfg.freeze()
    default_setup(cfg, args)


def evaluate(cfg, resume):
    check_settings(cfg, training=False)
    model = Trainer.build_model(cfg)
    check_classes(cfg, model.card)
    checkpointer = AMWCCheckpointer(model, cfg.OUTPUT_DIR)
    resume = resume and checkpointer.has_checkpoint()
    checkpointer.load_whole(checkpointer.get_checkpoint_file() if resume else cfg.MODEL.WEIGHTS)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def main(args):
    cfg = load_config(args.config_file, args.opts)
    with ExitStack() as stack:
        if comm.is_main_process():
            stack.enter_context(claim(cfg.OUTPUT_DIR))
            if not (args.resume or args.eval_only):
                check_unused(cfg.OUTPUT_DIR)
        setup(cfg, args)
        if args.eval_only:
            interruption = stack.enter_context(Interruption())
            with interruption.at_once():
                return evaluate(cfg, args.resume)
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
