"""No test fails because a machine is slow or busy: hypothesis has no deadline anywhere."""

from hypothesis import settings

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
