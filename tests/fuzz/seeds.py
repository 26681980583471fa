#!/usr/bin/env python3
"""Writes the first inputs of every fuzz target into `corpus/`: `tests/fuzz/seeds.py`.

Each is a small example of what the target reads, so that a short run starts behind the first checks. Examples are
written here or cut from `testdata`; the form of an input (which bytes steer the target) is told in the target's own
file. Files with other names, such as the reproducers of faults that were mended, are left alone.
"""

import gzip
import json
import struct
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTDATA = HERE.parent.parent / "testdata"
CRLF = "\r\n"


def head(*lines):
    return CRLF.join([*lines, "", ""]).encode("latin-1")


def write(target, seeds):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("seed-*"):
        old.unlink()
    for name, content in seeds.items():
        content = content.encode() if isinstance(content, str) else content
        assert len(content) <= 4096, f"{target}/{name} is longer than inputs get"
        (folder / f"seed-{name}").write_bytes(content)


REQUESTS = {
    "get": head("GET /v1/models HTTP/1.1", "Host: localhost:8080", "Authorization: Bearer sk-lp-x"),
    "post-length": head("POST /v1/chat/completions?a=b HTTP/1.1", "Host: [::1]:80", "Content-Length: 5"),
    "post-chunked": head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: Chunked", "Expect: 100-continue"),
    "absolute": head("GET http://A.example/v1?x HTTP/1.1", "Host: a.example", "Connection: close, x-a", "X-A: b"),
    "http10": head("GET / HTTP/1.0", "Connection: Keep-Alive"),
    "credentials": head("GET / HTTP/1.1", "Host: a", "x-api-key: 1", "api-key:2", "X-Goog-Api-Key:\t3 "),
    "forwarded": head("GET / HTTP/1.1", "Host: a", "X-Forwarded-For: ::1", "Forwarded: for=x", "TE: trailers"),
    "obs-text": head("GET / HTTP/1.1", "Host: a", "X-Name: M\xfcller\t"),
    "two-hosts": head("GET / HTTP/1.1", "Host: a", "Host: a"),
    "two-framings": head("POST / HTTP/1.1", "Host: a", "Content-Length: 1", "Transfer-Encoding: chunked"),
    "list-length": head("POST / HTTP/1.1", "Host: a", "Content-Length: 1, 1"),
    "folded": head("GET / HTTP/1.1", "Host: a", "X: a", " b"),
    "space-before-colon": head("GET / HTTP/1.1", "Host: a", "X : y"),
    "bare-lf": b"GET / HTTP/1.1\nHost: a\n\r\n\r\n",
    "bare-cr": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
    "many-fields": head("GET / HTTP/1.1", "Host: a", *[f"x{n}: {n}" for n in range(99)]),
    "too-many-fields": head("GET / HTTP/1.1", "Host: a", *[f"x{n}: {n}" for n in range(100)]),
    "asterisk": head("OPTIONS * HTTP/1.1", "Host: a"),
}

ANSWERS = {
    "length": head("HTTP/1.1 200 OK", "Content-Length: 5", "content-type: application/json"),
    "chunked": head("HTTP/1.1 200", "Transfer-Encoding: chunked", "Connection: close"),
    "until-close": head("HTTP/1.1 200 OK", "x-request-id: a"),
    "no-content": head("HTTP/1.1 204 No Content", "Content-Length: 0"),
    "no-content-chunked": head("HTTP/1.1 204 No Content", "Transfer-Encoding: chunked"),
    "not-modified": head("HTTP/1.1 304 ", "Content-Length: 7", "ETag: \"a\""),
    "early-hints": head("HTTP/1.1 103 Early Hints", "Link: </a>; rel=preload"),
    "http10": head("HTTP/1.0 200 OK", "Connection: keep-alive", "Content-Length: 2"),
    "switching": head("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket"),
    "framed-twice": head("HTTP/1.1 200 OK", "Content-Length: 1", "Transfer-Encoding: chunked"),
    "two-lengths": head("HTTP/1.1 200 OK", "Content-Length: 1", "Content-Length: 1"),
    "coded": head("HTTP/1.1 200 OK", "Transfer-Encoding: gzip, chunked"),
    "folded": head("HTTP/1.1 200 OK", "X: a", "\tb", "Content-Length: 1"),
    "bare-lf": b"HTTP/1.1 200 OK\nContent-Length: 1\n\n",
    "two-digits": head("HTTP/1.1 20 OK"),
    "http2": head("HTTP/2 200 OK"),
    "reason": head("HTTP/1.1 418 I'm a \t t\xe9apot", "Set-Cookie: a", "Set-Cookie: b"),
}

CHUNKS = {
    "empty": b"0\r\n\r\n",
    "one": b"5\r\nhello\r\n0\r\n\r\n",
    "two": b"5\r\nhello\r\n00A;a=b;c=\"d e\"\r\n0123456789\r\n0\r\n\r\n",
    "trailers": b"1\r\nx\r\n0\r\nX-Sum: 1\r\nY:\r\nZ:\t\xfc \r\n\r\nbeyond",
    "long-size": b"00000000000000F\r\n0123456789abcde\r\n0\r\n\r\n",
    "too-long-size": b"000000000000000F\r\nx",
    "huge": b"fffffffffffffff\r\nsome of it",
    "no-size": b";x\r\n",
    "space": b"5 \r\nhello\r\n0\r\n\r\n",
    "prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "bare-lf": b"5\nhello\n0\n\n",
    "long-data": b"5\r\nhelloX\r\n0\r\n\r\n",
    "no-colon": b"0\r\nno colon\r\n\r\n",
    "cut": b"5;e\r\nhel",
    "long-extension": b"1;" + b"e" * 1024 + b"\r\nx\r\n0\r\n\r\n",
}


def streams():
    length = REQUESTS["post-length"] + b"hello"
    chunked = head("POST /a HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + CHUNKS["two"]
    trailers = head("PUT /b HTTP/1.1", "Host: a", "Transfer-Encoding: chunked")
    trailers += b"1\r\nx\r\n0\r\nContent-Length: 5\r\n\r\n"
    smuggled = head("GET /hidden HTTP/1.1", "Host: a")
    return {
        "pipelined": REQUESTS["get"] * 3,
        "bodies": length + chunked + REQUESTS["get"],
        "trailers": trailers + REQUESTS["get"],
        "old": head("POST / HTTP/1.0", "Connection: keep-alive", "Content-Length: 2") + b"{}" + REQUESTS["http10"],
        "hidden-in-body": head("POST / HTTP/1.1", "Host: a", f"Content-Length: {len(smuggled)}") + smuggled,
        "both": REQUESTS["two-framings"] + b"0\r\n\r\n" + smuggled,
        "two-lengths": head("POST / HTTP/1.1", "Host: a", "Content-Length: 0", "Content-Length: 34") + smuggled,
        "bare-lf-chunk": head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + b"0\n\n" + smuggled,
        "extension": head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + b"0;\n\r\n\r\n" + smuggled,
        "spaced-coding": head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding : chunked", "Content-Length: 5"),
        "upper-prefix": head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: xchunked") + b"0\r\n\r\n",
        "empty-lines": b"\r\n\r\n" + REQUESTS["get"],
        "close": REQUESTS["absolute"] + REQUESTS["get"],
    }


ROUTES = {
    "chat": "\4/v1/chat/completions",
    "prefix": "\4/groq/v1/chat/completions\n/v1/chat/*",
    "double-v1": "\0/narrow/v1/files/a%2Fb/content\n/v1/files/**",
    "no-v1": "\0/narrow/models/x",
    "encoded-v1": "\0/narrow/%761/models/x",
    "only-prefix": "\0/openai",
    "messages": "\2/v1/messages/count_tokens",
    "gemini": "\4/v1beta/models/gemini-2.5-pro:generateContent?key=a&%6bey=b",
    "gemini-escaped": "\4/tuned/v1beta/tunedModels/mine%3AgenerateContent",
    "gemini-key": "\1/v1/models?alt=sse&key",
    "deployment": "\4/openai/deployments/gpt4/chat/completions?api-version=1&api-key=c",
    "deployment-short": "\0/openai/deployments/gpt4",
    "deployment-without-azure": "\x0c/openai/deployments/gpt4/embeddings",
    "azure-v1": "\0/azure/openai/v1/responses",
    "realtime": "\0/openai/realtime?a=1",
    "dots": "\0/v1/%2e%2e/x",
    "dots-behind-slash": "\0/v1/a%2F..",
    "encoded-twice": "\0/v1/%252e",
    "semicolon": "\0/v1/a%3Bb;c",
    "backslash": "\0/v1/a%5Cb",
    "empty-segment": "\0/v1//x",
    "slash": "\0/v1/models/",
    "utf8": "\0/v1/models/caf%C3%A9",
    "bad-utf8": "\0/v1/a%C0%AFb",
    "glob": "\0/v1/gpt-4o-mini-2024\n*mini*4",
    "stars": "\0/a/b/c\n/*/**",
}

JSON = {
    "chat": '{"model":"gpt-4o","messages":[{"role":"user","content":"say \\"hi\\" \\\\"}],"n":2}',
    "model-last": '{"messages":[{"model":"no"}],"stream":true, "model" : "gpt-4o-mini" }',
    "escaped-name": '{"mod\\u0065l":"gpt-4o"}',
    "escaped-value": '{"model":"gpt\\u002d4o"}',
    "twice": '{"model":"a","model":"b"}',
    "twice-escaped": '{"model":"a","mod\\u0065l":"a"}',
    "letters": '{"model":"a","Model":"b"}',
    "metadata": '{"metadata":{"a":[1,2.5,-0,1e3,null,true],"b":{"c":"\\ud83d\\ude00"},"a":[]},"n":-7}',
    "surrogate": '{"x":"\\ud800","model":"a"}',
    "surrogate-name": '{"\\ud800":1}',
    "range": '{"x":1e999,"n":1e999}',
    "long-number": '{"n":12345678901234567890123,"metadata":0.1234567890123456789e-5}',
    "array": '[1,{"model":"a"}]',
    "text": '"model"',
    "number": " 1e3 ",
    "empty-object": "{}",
    "nan": '{"a":NaN}',
    "leading-zero": '{"a":01}',
    "quotes": "{'model':'a'}",
    "trailing-comma": '{"model":"a",}',
    "comment": '{"model":"a" /* */}',
    "second-value": '{"model":"a"}{}',
    "mark": "\ufeff{}",
    "deep": '{"model":' + "[" * 130 + "]" * 130 + "}",
    "deep-elsewhere": '{"x":' + "[" * 500 + "]" * 500 + ',"model":"a"}',
    "control": '{"model":"a\x01"}',
    "long-model": '{"model":"' + "m" * 257 + '"}',
    "no-value": '{"model"}',
    "twice-within": '{"metadata":{"type":"text","type":"json_object"}}',
    "letters-within": '{"metadata":[1,{"a":{"b":1,"B":2}}]}',
    "spelling": '{"top_k":40,"metadata":{"maxTokens":1,"max_tokens":2}}',
    "spellings": '{"topK":1,"top_k":40}',
    "spaced": '{"metadata":{ "a" : [ 1.0 ,\n"b \\" , c" ] , "d e" : { } } , "n" : 5e-1 }',
    "items": '{"n":[1.0,[ 0.50 ,"a\\u0062"],{"b" : 1},[],"]"]}',
    "item-surrogate": '{"n":["a","\\ud800"],"metadata":{"a":"\\ud800"}}',
    "deepest": '{"n":' + "[" * 128 + "]" * 128 + ',"metadata":' + '{"a":' * 128 + "1" + "}" * 128 + "}",
    "too-deep": '{"n":' + "[" * 129 + "]" * 129 + "}",
    "models": '{"model":"a","models":["b","c\\u002fd"],"tools":[{"type":"x","model":"e"},{"model":null},"f",[]]}',
    "models-text": '{"model":"a","models":"b"}',
    "models-null": '{"models":["a",null]}',
    "tools-object": '{"tools":{"model":"a"}}',
    "tool-twice": '{"tools":[{"model":"a","mod\\u0065l":"b"}]}',
    "tool-range": '{"tools":[1e999,{"x":1e999,"model":"a"}]}',
}


def recorded(name, most=2400):
    return (TESTDATA / "provider" / name).read_bytes()[:most]


def sse():
    plan = b"\x06\x1e"
    as_it_comes = {
        "openai": b"\0\0" + plan + recorded("openai-chat-stream-usage.sse"),
        "openai-tools": b"\0\0" + plan + recorded("openai-chat-stream-tool-calls.sse"),
        "openrouter-error": b"\0\0" + plan + recorded("openrouter-stream-error.sse"),
        "responses": b"\0\0" + plan + recorded("openai-responses-stream-failed.sse", 3000),
        "multilingual": b"\0\0" + plan + recorded("synthetic-chat-stream-multilingual.sse"),
        "anthropic": b"\1\0" + plan + recorded("anthropic-messages-stream-tool-use.sse"),
        "anthropic-cut": b"\x09\0" + plan + recorded("anthropic-messages-stream-tool-use.sse", 1500),
        "gemini": b"\2\0" + plan + recorded("gemini-stream-basic.sse"),
        "azure": b"\3\0" + plan + recorded("azure-chat-stream.sse"),
        "mixed-ends": b"\0\0" + plan + b"\xef\xbb\xbfdata: 1\n\r\ndata:2\r\n\n: c\n\ndata\ndata\r\r\rdata: x",
        "usage": b"\0\0" + plan + b'data: {"choices":[],"usage":{"prompt_tokens":1,\ndata: "completion_tokens":2}}\n\n',
        "groq": b"\0\0" + plan + b'data: {"x_groq":{"usage":{"prompt_tokens":1}}}\r\n\r\ndata: [DONE]\r\n\r\n',
    }
    texts = b'\x11\0\x22\0Hello\0,"usage":{"prompt_tokens":9}\0\xe4\r\ndata: [DONE]\n\n\0message_delta\0"}}'
    built = {
        f"built-{dialect}-{style}": bytes([dialect | 4, style]) + plan + texts
        for dialect, style in [(0, 0), (1, 1), (2, 2), (3, 28), (0, 63), (1, 58), (2, 27)]
    }
    return as_it_comes | built


def bare(plain):
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return encoder.compress(plain) + encoder.flush()


def named_gzip(plain):
    flags = 4 | 8 | 16
    wrapper = b"\x1f\x8b\x08" + bytes([flags]) + b"\0\0\0\0\0\xff" + b"\x03\0abc" + b"a.sse\0" + b"comment\0"
    return wrapper + bare(plain) + struct.pack("<II", zlib.crc32(plain), len(plain))


def stored_brotli(plain):
    """A window of 16 bits, one uncompressed meta-block, the end (RFC 7932, sections 9.1 and 9.2)."""
    bits = (len(plain) - 1) << 4 | 1 << 20
    return bits.to_bytes(3, "little") + plain + b"\x03"


def stored_zstd(plain):
    """A frame of one segment with one raw block, no checksum (RFC 8878, sections 3.1.1.1 and 3.1.1.2)."""
    size = len(plain)
    return b"\x28\xb5\x2f\xfd\x60" + struct.pack("<H", size - 256) + (size << 3 | 1).to_bytes(3, "little") + plain


def decoders():
    plan = b"\x60\x06\x1e"
    stream = recorded("openai-chat-stream-usage.sse")
    body = recorded("openai-chat-basic.json")
    message = recorded("gemini-stream-basic.sse")
    skippable = b"\x50\x2a\x4d\x18\x05\0\0\0hello"
    wires = {  # by the coding's place in the target's list
        "gzip": (0, gzip.compress(stream, mtime=0)),
        "gzip-named": (0, named_gzip(stream)),
        "gzip-members": (4, gzip.compress(stream[:700], mtime=0) + gzip.compress(stream[700:], mtime=0)),
        "gzip-padded": (7, gzip.compress(stream, mtime=0) + bytes(9)),
        "gzip-broken": (0, gzip.compress(stream, mtime=0)[:200] + b"\xff" * 40),
        "gzip-cut": (0, gzip.compress(stream, mtime=0)[:200]),
        "zlib": (1, zlib.compress(stream)),
        "bare": (1, bare(stream)),
        "brotli": (2, stored_brotli(stream)),
        "brotli-metadata": (2, b"\x2c\x02hello\x03"),
        "brotli-large": (2, b"\x11\x1e"),
        "zstd": (3, stored_zstd(stream)),
        "zstd-frames": (3, skippable + stored_zstd(message) + stored_zstd(message) + b"\0"),
        "zstd-window": (3, b"\x28\xb5\x2f\xfd\x00\xf8"),
        "identity": (5, stream),
        "chain": (6, stream),
    }
    seeds = {name: bytes([8 | place << 4]) + plan + wire for name, (place, wire) in wires.items()}
    seeds["json-gzip"] = bytes([8 | 4]) + plan + gzip.compress(body, mtime=0)
    seeds["json-zlib"] = bytes([8 | 4 | 1 << 4]) + plan + zlib.compress(body)
    seeds["plain-stream"] = b"\0" + plan + stream
    seeds["plain-gemini"] = b"\2" + plan + message
    seeds["plain-json"] = b"\4" + plan + body
    seeds["plain-anthropic"] = b"\1" + plan + recorded("anthropic-messages-stream-tool-use.sse")
    seeds["plain-bomb"] = b"\0" + plan + b"data: " + b"x" * 3500
    return seeds


def form(*parts, boundary="b", kind="multipart/form-data; boundary={}"):
    body = "".join(f"--{boundary}{CRLF}{head}{CRLF}{CRLF}{content}{CRLF}" for head, content in parts)
    return f"\0{kind.format(boundary)}\n{body}--{boundary}--{CRLF}"


def multipart():
    model = 'Content-Disposition: form-data; name="model"'
    file = 'Content-Disposition: form-data; name="file"; filename="a.mp3"' + CRLF + "Content-Type: audio/mpeg"
    long_boundary = "----WebKitFormBoundary" + "x" * 48
    return {
        "model": form((model, "whisper-1")),
        "file-first": form((file, "\r\n--\r\n\x7f"), (model, "whisper-1")),
        "list": form(('Content-Disposition: form-data; name="include[]"', "logprobs"), (model, "a")),
        "typed": form((model + CRLF + "Content-Type: text/plain; charset=utf-8", "a")),
        "measured": form((model + CRLF + "Content-Length: 1" + CRLF + "Content-Transfer-Encoding: 8bit", "a")),
        "unquoted": form(("content-disposition:FORM-DATA;NAME=model", "a"), boundary="a'b+c_d-e.f"),
        "quoted-boundary": form((model, "a"), boundary="(a) =?,/:", kind='multipart/form-data; boundary="{}"'),
        "long-boundary": form((model, "a"), boundary=long_boundary),
        "charset-boundary": form((model, "a"), kind="Multipart/Form-Data ; charset=utf-8;\tBOUNDARY={}"),
        "twice": form((model, "a"), (model, "b")),
        "letters": form(('Content-Disposition: form-data; name="Model"', "a")),
        "bracketed": form(('Content-Disposition: form-data; name="model[]"', "a")),
        "encoded-name": form(('Content-Disposition: form-data; name="x"; name*=utf-8\'\'model', "a")),
        "escaped-quote": form(('Content-Disposition: form-data; name="x"; filename="\\"; name=\\"model"', "a")),
        "name-in-file-name": form(('Content-Disposition: form-data; name="x"; filename="; name=model; y="', "a")),
        "two-names": form(('Content-Disposition: form-data; name="x"; NAME="model"', "a")),
        "bare-lf": "\0multipart/form-data; boundary=b\n--b\n" + model + "\n\na\n--b--\n",
        "preamble": "\0multipart/form-data; boundary=b\nx\r\n--b\r\n" + model + "\r\n\r\na\r\n--b--\r\n",
        "delimiter-inside": form((model, "a\r\n--bc\r\nx")),
        "base64": form((model + CRLF + "Content-Transfer-Encoding: base64", "YQ==")),
        "nested": form((model + CRLF + "Content-Type: multipart/mixed; boundary=y", "a")),
        "two-boundaries": form((model, "a"), kind="multipart/form-data; boundary={}; boundary*=utf-8''c"),
        "built": "\1whisper-1\0\r\n\0\0--\0-\r\n\r\nContent-Disposition: form-data; name=\"f0\"\0\ufeffmark",
        "built-file": b"\1\xff\xfe\r\n\0text",
        "built-long": "\1" + "v" * 1100 + "\0a",
    }


def crc_digits(number, width):
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    text = ""
    for _ in range(width):
        number, digit = divmod(number, 62)
        text = digits[digit] + text
    return text


def token(octets):
    body = "sk-lp-" + crc_digits(int.from_bytes(octets, "big"), 27)
    return body + crc_digits(zlib.crc32(body.encode()), 6)


def tokens():
    good = token(bytes(range(20)))
    return {
        "good": good,
        "smallest": token(bytes(20)),
        "largest": token(b"\xff" * 20),
        "shouted": good.upper(),
        "short": good[:-1],
        "long": good + "0",
        "spaced": " " + good,
        "wrong-check": good[:-1] + ("0" if good[-1] != "0" else "1"),
        "wrong-prefix": "sk-proj-" + good[8:],
        "letters": "sk-lp-ééééééééééééééééé",
        "random-changed": bytes(range(20)) + b"\0\x09A",
        "random-dropped": bytes(range(20)) + b"\1\x26 ",
        "random-doubled": bytes(range(20)) + b"\2\0 ",
        "random-swapped": bytes(range(20)) + b"\3\x07 ",
    }


def configuration():
    seeds = {}
    for folder in ("good", "bad"):
        for path in sorted((TESTDATA / "config" / folder).glob("*.yaml")):
            seeds[f"{folder}-{path.stem}"] = path.read_text()
    key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    environment = f"LISTEN_ADDR=127.0.0.1:0\nLISTEN_ADR=x\nROOT_KEY={key}\nLOG_LEVEL=\nHEAD_TIMEOUT=5s"
    flags = "DRAIN_TIMEOUT=0s\nDEFAULT_API=gemini\nADMIN_LISTEN_ADDR=[::1]:0"
    dotenv = "# mine\nexport DATA_DIR='./d'\nMANAGEMENT_TOKEN=\"0f8e2b1c\\\"9d7a6354\" # a comment\nLOG_FORMAT=json"
    seeds["layers"] = "\0".join(["log_level: warn\nmax_held_bytes_total: 64MiB", dotenv, environment, flags])
    seeds["other-file"] = "log_level: debug\0\0CONFIG=llm-proxy.yaml\0CONFIG=/srv/llm-proxy.yaml"
    seeds["no-file"] = "\0CONFIG=missing.yaml"
    seeds["flow"] = '{apis: {"a-1": {dialect: openai, param_whitelist: {"\\u00fc \\0": ["*", ""], n: [0x1F, ~]}}}}'
    seeds["words"] = "apis: {gemini: {param_whitelist: {n: [1, 0.50, true, null, 'x', \"\\x1b\"]}}}"
    seeds["list-of-nothing"] = "apis: {openai: {allowed_origins: [], param_whitelist: {}, timeouts: {total: none}}}"
    sinks = "sinks: {file: none, lunary: {api_key_env: THE_KEY, sample: 10%, only: {outcomes: [timeout]}}}"
    key = "THE_KEY=0d0c5a0e-6a58-4d0b-9d59-1f6f0f6f7b11"
    recording = "JOURNAL_MODE=lossy\nJOURNAL_MAX_BYTES=4MiB\nDISPATCHER=outside\nREDIS_URL=redis://:x@h:1/2"
    seeds["sinks"] = "\0".join([sinks, key, recording])
    seeds["sinks-without-key"] = "\0".join([sinks, "", key.replace("KEY", "KEYS"), recording])
    seeds["broken-quote"] = "a: 'b"
    seeds["two-documents"] = "log_level: info\n---\nlog_level: warn"
    seeds["bad-dotenv"] = "\0KEY='a'b\nnonsense"
    return seeds


SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def tlv(kind, value):
    return bytes([kind]) + struct.pack(">H", len(value)) + value


def block(command, family, *parts):
    content = b"".join(parts)
    return SIGNATURE + bytes([command, family]) + struct.pack(">H", len(content)) + content


def proxy_protocol():
    """What the connection begins with. A checksum of zeros is enough: the target sets it right."""
    inet = bytes([192, 0, 2, 1, 198, 51, 100, 2, 0xDC, 4, 1, 0xBB])
    inet6 = bytes.fromhex("20010db8000000000000000000000001" * 2) + b"\0\1\0\2"
    mapped = (bytes(10) + b"\xff\xff" + inet[:4]) * 2 + b"\0\1\0\2"
    checksum = tlv(3, bytes(4))
    request = b"GET /health HTTP/1.1\r\n\r\n"
    ones = ":".join(["ffff"] * 8)
    return {
        "line-4": b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n" + request,
        "line-6": b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.2 0 65535\r\n\x16\x03\x01",
        "line-groups": b"PROXY TCP6 1:2:3:4:5:6:192.0.2.7 1:2:3:4:5:6:7:: 1 2\r\n",
        "line-longest": f"PROXY TCP6 {ones} {ones} 65535 65535\r\n",
        "line-full": b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n",
        "line-too-long": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
        "line-unknown": b"PROXY UNKNOWN\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "line-zeros": b"PROXY TCP4 192.0.2.01 192.0.2.2 080 1\r\n",
        "line-spaces": b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
        "line-lf": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
        "line-cut": b"PROXY TCP4 192.0.2.1 192.0",
        "block-4": block(0x21, 0x11, inet) + request,
        "block-udp": block(0x21, 0x12, inet),
        "block-6": block(0x21, 0x21, inet6),
        "block-mapped": block(0x21, 0x22, mapped),
        "block-unix": block(0x21, 0x31, bytes(216)),
        "block-none": block(0x21, 0x00, checksum),
        "block-local": block(0x20, 0x00),
        "block-local-family": block(0x20, 0xF7, inet),
        "block-local-checksum": block(0x20, 0x11, inet, checksum),
        "block-half-told": block(0x21, 0x10, inet),
        "block-tlvs": block(0x21, 0x11, inet, tlv(2, b"proxy.test"), checksum, tlv(5, b"id"), tlv(4, bytes(9))),
        "block-two-checksums": block(0x21, 0x11, inet, checksum, checksum),
        "block-short": block(0x21, 0x21, inet),
        "block-tlv-cut": block(0x21, 0x11, inet, b"\4\0\2x"),
        "block-long": block(0x21, 0x11, inet, tlv(4, bytes(4065))),
        "block-too-long": block(0x21, 0x11, inet, tlv(4, bytes(4066)))[:64],
        "block-version": block(0x31, 0x11, inet),
        "block-command": block(0x22, 0x11, inet),
        "http": request,
        "tls": b"\x16\x03\x01\x02\x00\x01",
        "other-signature": b"\r\n\r\n\0\r\nQUIT\r\n",
    }


def frame(first, payload, masked=False, form=None):
    length, key = len(payload), b"\x37\xfa\x21\x3d"
    form = form or (1 if length < 126 else 2 if length < 65536 else 8)
    flag = 0x80 if masked else 0
    head = bytes([first, flag | {1: length, 2: 126, 8: 127}[form]])
    if form > 1:
        head += length.to_bytes(form, "big")
    if masked:
        head += key
        payload = bytes(octet ^ key[at % 4] for at, octet in enumerate(payload))
    return head + payload


def websocket_frames():
    """Side and cap of a message, two octets for the plan of the pieces, and the stream."""
    close = b"\x03\xe8bye"

    def conversation(masked):
        frames = [
            (0x81, b'{"type":"response.create"}'),
            (0x01, b"Hel"),
            (0x89, b"here?"),
            (0x00, b""),
            (0x80, b"lo"),
            (0x82, bytes(range(256)) * 2),
            (0x8A, b""),
            (0x88, close),
            (0x8A, b"late"),
        ]
        return b"".join(frame(first, payload, masked) for first, payload in frames)

    streams = {
        "conversation": (0, 255, conversation(False)),
        "conversation-masked": (1, 255, conversation(True)),
        "small-cap": (0, 3, conversation(False)),
        "small-cap-masked": (1, 3, conversation(True)),
        "no-cap": (1, 0, frame(0x81, b"", True) + frame(0x01, b"a", True) + frame(0x80, b"", True)),
        "cut": (1, 9, conversation(True)[:40]),
        "close-empty": (0, 9, frame(0x88, b"")),
        "close-half": (0, 9, frame(0x88, b"\3")),
        "close-inside": (0, 9, frame(0x01, b"a") + frame(0x88, close) + frame(0x80, b"b")),
        "two-closes": (1, 9, frame(0x88, close, True) * 2),
        "reserved-bit": (0, 9, frame(0xC1, b"a")),
        "reserved-opcode": (0, 9, frame(0x83, b"a")),
        "inside-another": (0, 9, frame(0x01, b"a") + frame(0x82, b"b")),
        "continues-nothing": (0, 9, frame(0x80, b"a")),
        "fragmented-ping": (0, 9, frame(0x09, b"a")),
        "long-ping": (0, 9, frame(0x89, bytes(126))),
        "no-mask": (1, 9, frame(0x81, b"a")),
        "mask": (0, 9, frame(0x81, b"a", True)),
        "longer-form": (0, 255, frame(0x82, bytes(125), form=2)),
        "longest-form": (0, 255, frame(0x82, bytes(300), form=8)),
        "nearly-longest": (0, 255, b"\x82\x7f" + (65535).to_bytes(8, "big")),
        "just-longest": (0, 255, b"\x82\x7f" + (65536).to_bytes(8, "big") + bytes(300)),
        "64-bits": (0, 255, b"\x82\x7f\x80"),
        "reason": (0, 9, "Grüße ".encode() * 30),
    }
    return {name: bytes([side, cap, 3, 30]) + stream for name, (side, cap, stream) in streams.items()}


def journal_scripts():
    """A plan, then steps: what is done in the higher bits, with how many bytes in the lower ones."""
    def step(what, length, payload=b""):
        return bytes([what << 5 | length]) + payload

    record = step(0, 5, b"begin") + step(1, 3, b"end") + step(2, 5, b"admin")
    scripts = {
        "empty": b"",
        "records": record * 3 + step(0, 0) + step(1, 31, bytes(31)),
        "gap": record + step(3, 4, b"late") + record,
        "number-twice": record + step(4, 5, b"again") + record,
        "junk": record + step(6, 20, b"x" * 20) + record,
        "junk-like-a-record": record + step(6, 31, b"\5\0\0\0\2" + bytes(26)) + record,
        "turned-bit": record + step(7, 3) + record,
        "header-damaged": step(7, 2) + record,
        "cut": record + step(7, 0x10 | 2),
        "cut-and-on": record + step(7, 0x10 | 5) + record,
        "header-cut": step(7, 0x10 | 9),
    }
    return {name: b"\3\x1e\x07" + script for name, script in scripts.items()}


def event_payloads():
    """The payloads of the journal that is kept as an example."""
    payloads = {}
    for path in sorted((TESTDATA / "journal" / "v1").glob("*.seg")):
        rest = path.read_bytes()[40:]
        while len(rest) > 41:
            length, code = struct.unpack_from("<IB", rest)
            (seq,) = struct.unpack_from("<Q", rest, 9)
            payloads[f"{seq}-{code}"] = rest[41 : 41 + length]
            rest = rest[41 + length :]
    group = bytes([100 << 3 & 0x7F | 3 | 0x80, 6, 100 << 3 & 0x7F | 4 | 0x80, 6])
    return payloads | {"group": group, "twice": payloads["2-2"] * 2, "cut": payloads["8-2"][:-3]}


def captured_content():
    """A byte for type, coding, policy, length, a broken end and the side; a plan; the body."""
    types = {"json": 0, "events": 1, "text": 2, "untold": 3}
    codings = {"": 0, "gzip": 1, "deflate": 2, "zstd": 3}

    def body(kind, content, coding="", full=False, short=False, broken=False, request=False):
        flags = (full, short, broken, request)
        how = types[kind] | codings[coding] << 2 | sum(is_set << 4 + place for place, is_set in enumerate(flags))
        content = content.encode() if isinstance(content, str) else content
        return bytes([how]) + b"\x03\x1e\x07" + content

    def asked(*parts):
        return json.dumps({"model": "m", "messages": [{"role": "user", "content": list(parts)}], "seed": 1.50})

    def deltas(*texts):
        events = [json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) for text in texts]
        return "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])

    personal = "a.b@example.com, 4242 4242 4242 4242, DE89 3704 0044 0532 0130 00, +49 30 1234567, 192.0.2.1, ::1"
    secret = "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLXRoYXQtaXMtbm9uZQ"
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkq\n-----END PRIVATE KEY-----"
    texts = asked({"type": "text", "text": personal}, {"type": "text", "text": secret}, {"type": "text", "text": key})
    image = "data:image/png;base64," + "QUJD" * 60
    sound = {"type": "input_audio", "input_audio": {"data": "QUJD" * 300, "format": "wav"}}
    media = asked({"type": "image_url", "image_url": {"url": image}}, sound)
    spread = deltas("Write to an", "na@exam", "ple.", "com, or 4242 42", "42 4242 4242")
    recordings = {
        "chat": "openai-chat-stream-usage.sse",
        "tools": "openai-chat-stream-tool-calls.sse",
        "responses": "openai-responses-stream-failed.sse",
        "messages": "anthropic-messages-stream-tool-use.sse",
        "generate": "gemini-stream-basic.sse",
        "multilingual": "synthetic-chat-stream-multilingual.sse",
    }
    streams = {f"stream-{name}": body("events", recorded(file, 4000)) for name, file in recordings.items()}
    cut = {f"cut-{name}": body("events", recorded(file, 1500), broken=True) for name, file in recordings.items()}
    return streams | cut | {
        "texts": body("json", texts, request=True),
        "texts-full": body("json", texts, full=True, request=True),
        "texts-short": body("json", texts, short=True),
        "texts-broken": body("json", texts[:-40], broken=True, request=True),
        "texts-gzip": body("json", gzip.compress(texts.encode(), mtime=0), coding="gzip"),
        "texts-deflate": body("text", zlib.compress(personal.encode()), coding="deflate"),
        "texts-zstd": body("untold", stored_zstd(texts.encode()), coding="zstd"),
        "media": body("json", media, request=True),
        "media-full-short": body("json", media, full=True, short=True, request=True),
        "long-text": body("json", json.dumps({"a": "b", "c": "\u00e9\"" * 300, "d": ["x" * 300] * 3}), short=True),
        "numbers": body("json", json.dumps(list(range(700))), short=True),
        "spread": body("events", spread),
        "spread-broken": body("events", spread[:200], broken=True),
        "list": body("json", '[{"candidates":[{"content":{"parts":[{"text":"a@"}]}}]},{"candidates":[]}]'),
        "unknown-stream": body("events", 'data: {"type":"unheard-of","text":"a@b.com"}\n\n'),
        "unknown-stream-full": body("events", "event: x\ndata: a\n\n", full=True),
        "bomb": body("text", gzip.compress(bytes(2_000_000), mtime=0), coding="gzip"),
        "broken-gzip": body("json", b"\x1f\x8b\x08 no", coding="gzip"),
        "binary": body("untold", b"\x89PNG\r\n\x1a\n\0\0"),
        "binary-broken": body("untold", "\u20ac".encode()[:2], broken=True),
        "plain": body("text", f"{personal}\n{secret}"),
        "deep": body("json", "[" * 300 + "]" * 300),
        "digits": body("json", '{"n":-0.50e+10,"n":1,"u":"\\ud83d\\ude00\\ud83d"}', full=True),
        "nothing": body("json", ""),
    }


def main():
    write("request_head", REQUESTS)
    answers = {name: b"\0\x03\x1e\x07" + answer for name, answer in ANSWERS.items()}
    with_length = b"\1\x03\x1e\x07" + head("HTTP/1.1 204 No Content", "Content-Length: 4")
    write("answer_head", answers | {"no-content-with-length": with_length})
    write("chunks", {name: b"\x03\x1e\x07" + body for name, body in CHUNKS.items()})
    write("request_stream", streams())
    write("routes", ROUTES)
    write("policy_scan", {name: b"\x03\x1e\x07" + text.encode() for name, text in JSON.items()})
    write("sse_observer", sse())
    write("decoders", decoders())
    write("multipart", multipart())
    write("token", tokens())
    write("configuration", configuration())
    write("proxy_protocol", proxy_protocol())
    write("websocket_frames", websocket_frames())
    write("journal_reader", journal_scripts())
    write("event_decoder", event_payloads())
    write("captured_content", captured_content())
    for folder in sorted((HERE / "corpus").iterdir()):
        sizes = [path.stat().st_size for path in folder.iterdir()]
        print(f"{folder.name}: {len(sizes)} inputs, {sum(sizes)} bytes")


if __name__ == "__main__":
    main()
