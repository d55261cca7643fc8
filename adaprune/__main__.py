"""``python -m adaprune``: the same as the command ``adaprune``."""

from adaprune.command import main

if __name__ == "__main__":
    main()
