"""The management API, as far as the tests need it."""

import json
import os
import urllib.request
import uuid

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def request(method, path, body=None):
    call = urllib.request.Request(
        f"{os.environ['ADMIN_URL']}/manage/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"content-type": "application/json", "authorization": f"Bearer {os.environ['MANAGEMENT_TOKEN']}"},
    )
    with OPENER.open(call, timeout=10) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def new_token(project_id=None, **limits):
    return request("POST", "tokens", {"project_id": project_id or os.environ["PROJECT_ID"], "duration_minutes": 60, **limits})


def new_project(*provider_keys):
    keys = [{"api": api, "key": key} for api, key in provider_keys]
    return request("POST", "projects", {"name": f"sdk {uuid.uuid4()}", "provider_keys": keys})


def revoke(token):
    request("DELETE", f"tokens/{token['id']}")


def deactivate(project):
    request("PATCH", f"projects/{project['id']}", {"is_active": False})
