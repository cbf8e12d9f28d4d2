"""``python -m lwptv_lightning`` is ``lwptv``."""

from lwptv_lightning.cli import main

if __name__ == "__main__":
    main()
