"""Run a verb that needs torch, and turn a mistake into one line."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_efficient._files import FULL
from lightning_efficient.cli.output import complain
from lightning_efficient.cli.problems import explain
from lightning_efficient.cli.quiet import quiet
from lightning_efficient.errors import ConfigurationError, MissingExtraError, NonFiniteLossError


def run_verb(arguments: Sequence[str]) -> int:
    """Run a verb of LightningCLI or one of ours beside them, and return the exit status."""
    quiet()
    debug = "--debug" in arguments
    words = [word for word in arguments if word != "--debug"]
    try:
        _run(words)
    except (ConfigurationError, MisconfigurationException, MissingExtraError, NonFiniteLossError) as error:
        if debug:
            traceback.print_exc()
        complain(explain(error))
        return 1 if isinstance(error, NonFiniteLossError) else 2
    except OSError as error:
        if debug or error.errno not in FULL:
            raise
        complain(error.strerror if error.filename is None else f"{error.strerror}: {error.filename!r}")
        return 1
    except RuntimeError as error:
        if debug or not str(error).startswith("DataLoader worker"):
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        complain(
            f"a process that loads data has died ({reason}), most often because memory ran out; lower "
            "data.num_workers or data.batch_size; a fit goes on with --ckpt_path last"
        )
        return 1
    return 0


def _run(words: list[str]) -> None:
    from lightning_efficient.cli.arguments import expand  # loads torch, which must be quiet by then

    words = expand(words, _is_timm_model)
    # Lightning starts the other processes of a distributed run with sys.argv
    sys.argv[1:] = words
    from lightning_efficient.cli.efficient_cli import EfficientCLI

    EfficientCLI()


def _is_timm_model(name: str) -> bool:
    from lightning_efficient.nn.backbones import is_timm_model  # loads timm, needed only where a model is named

    return is_timm_model(name)
