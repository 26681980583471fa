"""What it means that an SDK gives the same: plain values of its objects, its exceptions and its headers."""

from sides import DIRECT, PROXIED

# Belong to one connection or one moment. `x-llm-proxy-request-id` is the one field that the proxy adds.
OF_THE_HOP = {"connection", "date", "keep-alive", "transfer-encoding", "x-llm-proxy-request-id"}


def on_every_side(case):
    """Runs `case(side)` direct, then demands the same of every way through the proxy. Returns what all gave."""
    direct = case(DIRECT)
    for side in PROXIED:
        assert case(side) == direct, f"{side.name} differs from direct"
    return direct


def headers(answered):
    """An answer's header fields as a sorted list: a doubled field would show."""
    pairs = answered.multi_items() if hasattr(answered, "multi_items") else answered.items()
    return sorted((name.lower(), value) for name, value in pairs if name.lower() not in OF_THE_HOP)


def plain(thing):
    """An SDK's object with its class, all its fields and its request id."""
    request_id = getattr(thing, "_request_id", None)
    return {"class": type(thing).__qualname__, "request_id": request_id, "fields": thing.model_dump(warnings=False)}


def answer(raw):
    """A `with_raw_response` answer of openai or anthropic: header fields and the parsed object, or a stream's every event."""
    parsed = raw.parse()
    if hasattr(parsed, "model_dump"):
        return {"headers": headers(raw.headers), "object": plain(parsed)}
    return {"headers": headers(raw.headers), "events": [plain(event) for event in parsed]}


def raised(call):
    """What an application can learn from the exception that `call` must raise."""
    try:
        call()
    except Exception as error:  # whichever class: the comparison is about it
        return described(error)
    raise AssertionError("nothing was raised")


def described(error):
    facts = {"class": f"{type(error).__module__}.{type(error).__qualname__}", "text": str(error)}
    for name in ("status_code", "status", "code", "type", "param", "message", "body", "request_id", "details"):
        facts[name] = getattr(error, name, None)
    response = getattr(error, "response", None)
    facts["headers"] = headers(response.headers) if response is not None else None
    return facts


def class_raised(call):
    """Only the class: a broken connection's text names ports and bytes."""
    try:
        call()
    except Exception as error:
        return type(error)
    raise AssertionError("nothing was raised: a broken answer passed as whole")
