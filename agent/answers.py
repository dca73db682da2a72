"""The contract's envelope around every answer of the API, and the refusals that become one."""

from __future__ import annotations

import time
from typing import Any

from agent.server import Answer
from protocol import errors
from protocol.codec import encode
from protocol.times import to_text

SIGNATURE_INVALID = 3003
TASK_NOT_FOUND = 4001
TASK_STATE = 4002

_STATUS = {**errors.HTTP_STATUS, SIGNATURE_INVALID: 400, TASK_NOT_FOUND: 404, TASK_STATE: 409}
_CODES = {
    400: errors.BAD_PARAMETER,
    411: errors.BAD_PARAMETER,
    413: errors.TOO_LARGE,
    429: errors.TOO_MANY_REQUESTS,
    431: errors.TOO_LARGE,
    500: errors.INTERNAL,
}
_CHINESE = {
    errors.SUCCESS: "成功",
    errors.BAD_PARAMETER: "参数错误",
    errors.NOT_AUTHENTICATED: "未通过身份验证",
    errors.FORBIDDEN: "禁止访问",
    errors.NOT_FOUND: "不存在",
    errors.TOO_MANY_REQUESTS: "请求过多",
    errors.CONFLICT: "冲突",
    errors.METHOD_NOT_ALLOWED: "方法不允许",
    errors.TOO_LARGE: "请求过大",
    SIGNATURE_INVALID: "签名或哈希无效",
    TASK_NOT_FOUND: "任务不存在",
    TASK_STATE: "任务在当前状态下不允许此操作",
    errors.INTERNAL: "内部错误",
}


class Refused(Exception):
    """An answer that is not 2xx."""

    def __init__(self, code: int, words: str, data: Any = None, retry_after_s: int | None = None) -> None:
        super().__init__(words)
        self.code = code
        self.data = data
        self.retry_after_s = retry_after_s


def bad(field: str, words: str) -> Refused:
    """A parameter is wrong."""
    return Refused(errors.BAD_PARAMETER, f"{field}: {words}", {"errors": [{"field": field, "message": words}]})


def enveloped(data: Any, status: int = 200, language: str = "") -> Answer:
    """A success."""
    message = _CHINESE[errors.SUCCESS] if _is_chinese(language) else "success"
    return Answer(status, _body(errors.SUCCESS, message, data))


def refusal(error: Refused, language: str = "") -> Answer:
    """Not a success."""
    words = f"{_CHINESE[error.code]}: {error}" if _is_chinese(language) and error.code in _CHINESE else str(error)
    headers = () if error.retry_after_s is None else (("Retry-After", str(error.retry_after_s)),)
    return Answer(_STATUS[error.code], _body(error.code, words, error.data), headers)


def complaint(status: int, words: str) -> Answer:
    """What the server says to something that is no request."""
    return Answer(status, _body(_CODES.get(status, errors.BAD_PARAMETER), words, None))


def _body(code: int, message: str, data: Any) -> bytes:
    return encode({"code": code, "message": message, "data": data, "timestamp": to_text(time.time())})


def _is_chinese(language: str) -> bool:
    return language.strip().lower().startswith("zh")
