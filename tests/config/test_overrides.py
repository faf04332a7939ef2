from ray.exceptions import RayTaskError

from spin.config.overrides import explain_error
from spin.errors import ConfigError


def test_an_error_of_the_user_that_a_ray_actor_raised_is_one_line() -> None:
    cause = ConfigError("beta=0 was found; expected more than 0")
    error = RayTaskError("train", "Traceback (most recent call last):\n  File ...", cause).as_instanceof_cause()
    assert isinstance(error, ConfigError)
    assert "\n" in str(error)
    assert explain_error(error) == "beta=0 was found; expected more than 0"
