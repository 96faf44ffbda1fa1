"""What the pipelines train and sample: any class-conditional network of images."""

from typing import TypeAlias

from jaxgen.models.image_conv import ImageConv
from jaxgen.models.image_mlp import ImageMLP

ImageNetwork: TypeAlias = ImageMLP | ImageConv
"""Called as `apply({"params": params}, x, noise_condition, label, augmentation?)`; its `config` holds `image_shape`,
`num_classes`, `null_label`, `augmentation` and `remat`."""
