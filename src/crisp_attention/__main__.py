"""The command `crisp`, also as `python -m crisp_attention`."""

import sys

from crisp_attention.extras import extra_of

USER_ERROR = 2


def main() -> None:
    """Entry point of the console script; one line where what a command needs is not installed."""
    try:
        from crisp_attention.cli.main import main as run

        run()
    except ModuleNotFoundError as error:
        if (extra := extra_of(error.name)) is None:
            raise
        print(
            f'error: this command needs {error.name}, which is not installed: pip install "crisp-attention[{extra}]"',
            file=sys.stderr,
        )
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
