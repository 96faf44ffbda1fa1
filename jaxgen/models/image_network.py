"""What the pipelines train and sample: any class-conditional network of images."""

from typing import TypeAlias

from jaxgen.models.edm2 import EDM2
from jaxgen.models.image_conv import ImageConv
from jaxgen.models.image_mlp import ImageMLP

ImageNetwork: TypeAlias = ImageMLP | ImageConv | EDM2
"""Called as `apply({"params": params, **others}, x, noise_condition, label, augmentation?)`, where `others` are the
collections that `init_variables` draws beside the parameters, {} but for `EDM2`; its `config` holds `image_shape`,
`num_classes`, `null_label`, `augmentation` and `remat`."""
