"""Studies: what one pipeline run is asked for."""

from repro.streams import parse_seeds
from repro.study.files import PARAMS, STUDIES, available, load, named, new, purpose, readable, study_path, use
from repro.study.schema import (
    OUT,
    Claim,
    CurveClaim,
    Data,
    Evaluate,
    Generate,
    Networks,
    Order,
    Part,
    Published,
    Study,
    Sweep,
    Tuned,
    Waived,
    known,
)

__all__ = ["OUT", "PARAMS", "STUDIES", "available", "known", "load", "named", "new", "parse_seeds", "purpose"]
__all__ += ["readable", "study_path", "use"]
__all__ += ["Claim", "CurveClaim", "Data", "Evaluate", "Generate", "Networks", "Order", "Part", "Published"]
__all__ += ["Study", "Sweep", "Tuned", "Waived"]
