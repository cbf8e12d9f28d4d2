"""A merged model for others: what of its folder goes to the Hugging Face hub, and how."""

from lwptv_lightning.sharing.parcel import CARD, Parcel
from lwptv_lightning.sharing.push import HubError, Push
from lwptv_lightning.sharing.results import own_row, read_results

__all__ = ["HubError", "Parcel", "Push"]
