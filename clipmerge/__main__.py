"""``python -m clipmerge``, and ``accelerate launch -m clipmerge``."""

from clipmerge.cli import main

if __name__ == "__main__":
    main()
