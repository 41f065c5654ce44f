"""Foreign models as Denoisers: any common parameterisation, and pipelines of diffusers."""

from repro.adapters.diffusers import from_diffusers as from_diffusers
from repro.adapters.parameterisations import from_epsilon as from_epsilon
from repro.adapters.parameterisations import from_flow as from_flow
from repro.adapters.parameterisations import from_v as from_v
from repro.adapters.parameterisations import from_x0 as from_x0
from repro.adapters.parameterisations import null_class as null_class
