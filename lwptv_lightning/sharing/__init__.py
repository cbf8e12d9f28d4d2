"""A merged model for others: what of its folder goes to the Hugging Face hub, and how."""

from lwptv_lightning.sharing.parcel import Parcel
from lwptv_lightning.sharing.push import HubError, Push

__all__ = ["HubError", "Parcel", "Push"]
