"""Where the processes of a merge were once; they forward to their room."""

from lwptv_lightning.engine import ALONE, RankFailedError, Ranks, divide

__all__ = ["ALONE", "RankFailedError", "Ranks", "divide"]
