"""Every error rescade raises on purpose, each with the HTTP status a server answers with.

    CascadeError                500
    ├── BundleError             500   a bundle folder or its manifest is wrong; names the field
    │   └── Untrusted           500   no trusted key signed the bundle
    ├── BadKey                  500   a key file cannot be used
    ├── RecipeError             400   a training recipe, run folder or data set is wrong
    ├── RequestError            400   a client asked for something that cannot be answered
    │   ├── BadShape            400
    │   ├── BadImage            422
    │   ├── TooLarge            413
    │   ├── UnsupportedType     415
    │   ├── SlowRequest         408
    │   ├── NotFound            404
    │   │   └── UnknownModel    404   no model, or no version of it, has that name
    │   ├── Conflict            409
    │   ├── Unauthorized        401
    │   ├── Forbidden           403
    │   └── TooManyRequests     429
    └── ServiceError            503   the service cannot answer now
        ├── NotReady            503
        ├── Overloaded          503
        ├── DeadlineExceeded    504
        ├── StageFailed         500   a network of the cascade could not be run
        ├── NotFinite           500   an answer holds a number that JSON cannot say
        └── DeviceUnavailable   503   an accelerator was asked for and is not there

A message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations


class CascadeError(Exception):
    """Root of the tree.

    Attributes:
        status: HTTP status.
        code: stable name for machines, in snake case.
    """

    status = 500
    code = "error"


class BundleError(CascadeError):
    """A bundle cannot be read or written.

    Args:
        field: where in the bundle, e.g. `stages[1].sha256`.
        message: what is wrong and what to do.
    """

    code = "bad_bundle"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class Untrusted(BundleError):
    """A bundle is not signed by a key that is trusted."""

    code = "untrusted_bundle"


class BadKey(CascadeError):
    """A key file cannot be read or written, or holds no Ed25519 key."""

    code = "bad_key"


class RecipeError(CascadeError):
    """A recipe, a run folder or a data set is not what training or export needs."""

    status = 400
    code = "bad_recipe"


class RequestError(CascadeError):
    """The request is at fault."""

    status = 400
    code = "bad_request"


class BadShape(RequestError):
    """An array has the wrong shape, type or values."""

    code = "bad_shape"


class BadImage(RequestError):
    """Bytes that are not an image, or not a whole one."""

    status = 422
    code = "bad_image"


class TooLarge(RequestError):
    """A body, an image or a batch is over its limit."""

    status = 413
    code = "too_large"


class UnsupportedType(RequestError):
    """A content type that no decoder is for."""

    status = 415
    code = "unsupported_type"


class SlowRequest(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = "slow_request"


class NotFound(RequestError):
    """There is nothing of that name."""

    status = 404
    code = "not_found"


class UnknownModel(NotFound):
    """No model, or no version of it, has that name."""

    code = "unknown_model"


class Conflict(RequestError):
    """What is asked for does not go with how things stand."""

    status = 409
    code = "conflict"


class Unauthorized(RequestError):
    """A key is needed and was not given."""

    status = 401
    code = "unauthorized"


class Forbidden(RequestError):
    """The key that was given is not one of those that may."""

    status = 403
    code = "forbidden"


class TooManyRequests(RequestError):
    """One client asks more often than it may.

    Args:
        message: what the limit is, and what to do.
        retry_after_s: seconds until it may ask again.
    """

    status = 429
    code = "too_many_requests"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServiceError(CascadeError):
    """The service is at fault, for now."""

    status = 503
    code = "unavailable"


class NotReady(ServiceError):
    """Warm-up has not ended, or the process is draining."""

    code = "not_ready"


class Overloaded(ServiceError):
    """More work is in flight than the limits allow.

    Args:
        message: what is full, and what to do.
        retry_after_s: seconds until there will be room, as far as the server can tell.
    """

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ServiceError):
    """The answer would come too late."""

    status = 504
    code = "deadline_exceeded"


class StageFailed(ServiceError):
    """A network of the cascade could not be run."""

    status = 500
    code = "stage_failed"


class NotFinite(ServiceError):
    """An answer holds NaN or infinity, which JSON cannot say."""

    status = 500
    code = "not_finite"


class DeviceUnavailable(ServiceError):
    """The device that was asked for is not there; nothing falls back in silence."""

    code = "device_unavailable"
