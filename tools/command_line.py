"""The command line of the tools that work with a trained model."""

import argparse


def model_parser(description, config_file=None):
    """Make a parser with ``--config-file`` and ``--opts``, which say what model to load.

    Args:
        description (str): the tool's docstring, shown as it stands.
        config_file (str or None): the default; None makes the argument a required one.

    Returns:
        ArgumentParser
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", metavar="FILE", default=config_file, required=config_file is None,
        help="the model's config" + (f" (default: {config_file})" if config_file else ""),
    )  # fmt: skip
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE",
        help="config options, last on the line; MODEL.WEIGHTS is the checkpoint",
    )  # fmt: skip
    return parser
