"""``python -m ract``: the same as the command ``ract`` (``torchrun`` needs a module)."""

from ract.cli import main

if __name__ == "__main__":
    main()
