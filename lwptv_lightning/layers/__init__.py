"""Layers: named groups of tensors, in the order in which a model uses them."""

from lwptv_lightning.layers.from_model import trace_layers
from lwptv_lightning.layers.from_names import layers_from_names
from lwptv_lightning.layers.layers import Layer, Layers
from lwptv_lightning.layers.matrices import is_matrix, is_pointwise
from lwptv_lightning.layers.tracing import TracingError, trace

__all__ = ["Layer", "Layers", "TracingError", "is_matrix", "is_pointwise", "layers_from_names", "trace", "trace_layers"]
