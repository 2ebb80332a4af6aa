"""The ``lightning-efficient`` command: answers what needs no torch by itself and hands the rest on."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightning_efficient._version import __version__
from lightning_efficient.cli.output import complain, say
from lightning_efficient.errors import did_you_mean

VERBS = {
    "fit": "train a model",
    "validate": "evaluate on the validation split",
    "test": "evaluate on the test split",
    "calibrate": "choose from where on a model answers, or asks a larger one",
    "predict": "write down what the model answers",
    "export": "write graphs of a model for deployment, checked against it",
    "serve": "answer requests with an exported model",
    "profile": "parameters, MACs, latency and memory of a model",
    "quantize": "an 8-bit copy of a model, with its size, speed and accuracy",
    "compare": "runs side by side, and which of them no other beats",
    "report": "a run as one page of HTML that opens anywhere",
    "search": "try configurations and keep the best trade-offs",
    "configs": "list, show, copy or check the shipped configs",
    "demo": "train, test and profile a small model on handwritten digits",
}

HELP = f"""\
usage: lightning-efficient VERB [OPTIONS]

Train PyTorch Lightning models that must cost less.

{chr(10).join(f"  {verb:<10}{what}" for verb, what in VERBS.items())}

A first run:
  lightning-efficient fit --config quickstart
  lightning-efficient profile --timm mobilenetv3_small_050

Options of a verb: lightning-efficient VERB --help
  -h, --help     show this page
  --version      show the version
  --debug        after a verb: show the traceback of an error"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; by default those of the process.

    Returns:
        Exit status: 0, 2 for a mistake in the arguments, 130 after Ctrl-C, 143 after SIGTERM, 1 for anything else.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "help"):
        say(HELP)
        return 0
    if verb == "--version":
        say(f"lightning-efficient {__version__}")
        return 0
    if verb not in VERBS:
        complain(f"unknown verb {verb!r}.{did_you_mean(verb, VERBS)} It must be one of: {', '.join(VERBS)}")
        return 2
    # only what the verb needs is imported: torch and Lightning take ten seconds of processor time
    try:
        if verb == "configs":
            from lightning_efficient.cli.configs import run_configs

            return run_configs(arguments[1:])
        if verb == "demo":
            from lightning_efficient.cli.demo import run_demo

            return run_demo(arguments[1:])
        if verb == "serve":
            from lightning_efficient.cli.serve import run_serve

            return run_serve(arguments[1:])
        if verb == "compare":
            from lightning_efficient.cli.compare import run_compare

            return run_compare(arguments[1:])
        if verb == "report":
            from lightning_efficient.cli.report import run_report

            return run_report(arguments[1:])
        if verb == "search":
            from lightning_efficient.cli.search import run_search

            return run_search(arguments[1:])
        from lightning_efficient.cli.run import run_verb

        return run_verb(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
