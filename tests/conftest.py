"""What all tests share."""

from hypothesis import HealthCheck, settings

# A property says what holds, not how quickly; machines that run tests are busy.
settings.register_profile(
    "radledger", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("radledger")
