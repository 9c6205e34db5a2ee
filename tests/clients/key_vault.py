"""An Azure Key Vault for tests, made from the published REST reference, version 7.4, and no more of it than sealvol asks for:
keys, wrapKey and unwrapKey with RSA-OAEP-256, soft-delete, lists in pages; and those who give tokens: an authority
(OAuth 2.0 client credentials) and a virtual machine's metadata service.

    key_vault.py CERTIFICATE KEY ADMIN      prints {"tls": PORT, "plain": PORT}, then serves until its standard input ends

Over TLS: the vault and the authority. In the clear: the metadata service, and for the test what an operator does, with the
secret ADMIN (`/test/...`). What is enforced as the service enforces it: a token's signature, audience and expiry, each
identity's permissions, the API's version, versions of keys, `enabled`, `nbf`, `exp`, deleted and purged keys, throttling.
What is not: network rules, role assignments, HSMs. No line of the service's own code was seen.
"""

import base64
import hmac
import json
import os
import re
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

AUDIENCE = "https://vault.azure.net"
OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
PAGE = 2


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        raise ValueError("not Base64 for URLs")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def number(value):
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


class Refused(Exception):
    def __init__(self, status, code, message, inner=None, headers=()):
        error = {"code": code, "message": message}
        if inner:
            error["innererror"] = {"code": inner}
        super().__init__(code)
        self.status, self.body, self.headers = status, {"error": error}, dict(headers)


class TokenRefused(Exception):
    def __init__(self, status, error, description):
        super().__init__(error)
        self.status, self.headers = status, {}
        self.body = {"error": error, "error_description": description, "trace_id": "t", "timestamp": "now"}


class State:
    """What the vault has; a lock around each request."""

    def __init__(self, admin):
        self.admin, self.secret = admin, os.urandom(32)
        self.lock = threading.Lock()
        self.origin = None
        self.keys, self.deleted = {}, {}  # name -> versions, the newest last
        self.applications = {}  # client id -> {"secret", "tenant"}
        self.machine = set()  # client ids of managed identities; "" is the system-assigned one
        self.permissions = {}  # client id -> set
        self.lifetime = 3600
        self.throttled = 0
        self.calls = []  # (client id, what)

    def token(self, client_id, audience):
        claims = {"aud": audience, "appid": client_id, "exp": time.time() + self.lifetime}
        body = b64(json.dumps(claims).encode())
        return body + "." + b64(hmac.digest(self.secret, body.encode(), "sha256"))

    def caller(self, header):
        challenge = {"WWW-Authenticate": f'Bearer authorization="https://login.test/t", resource="{AUDIENCE}"'}

        def stranger(message):
            return Refused(401, "Unauthorized", message, headers=challenge)

        kind, _, token = (header or "").partition(" ")
        if kind != "Bearer" or not token:
            raise stranger("AKV10000: Request is missing a Bearer or PoP token.")
        body, _, mac = token.partition(".")
        if mac != b64(hmac.digest(self.secret, body.encode(), "sha256")):
            raise stranger("AKV10013: Issuer not found or token not signed by it.")
        claims = json.loads(unb64(body))
        if claims["aud"] != AUDIENCE:
            raise stranger("AKV10022: Invalid audience.")
        if claims["exp"] <= time.time():
            raise stranger("AKV10011: Token has expired.")
        return claims["appid"]

    def permit(self, client_id, permission):
        self.calls.append((client_id, permission))
        if permission not in self.permissions.get(client_id, set()):
            message = f"The user, group or application 'appid={client_id};oid=o;iss=i' does not have keys {permission} permission on key vault 'test;location=nowhere'."
            raise Refused(403, "Forbidden", message, "AccessDenied")


class Key:
    def __init__(self, origin, name, kind, size, operations):
        self.version = os.urandom(16).hex()
        self.kid = f"{origin}/keys/{name}/{self.version}"
        self.kind, self.operations = kind, operations
        self.private = rsa.generate_private_key(65537, size) if kind.startswith("RSA") else None
        self.attributes = {"enabled": True, "created": int(time.time()), "updated": int(time.time()), "recoveryLevel": "Recoverable+Purgeable"}

    def bundle(self):
        key = {"kid": self.kid, "kty": self.kind, "key_ops": self.operations}
        if self.private:
            public = self.private.public_key().public_numbers()
            key |= {"n": number(public.n), "e": number(public.e)}
        return {"key": key, "attributes": self.attributes}

    def use(self, operation, value, algorithm):
        attributes, now = self.attributes, time.time()
        words = {"wrapKey": "wrapKey", "unwrapKey": "unwrapKey"}[operation]
        # As it was seen in the field: a disabled key still wraps. Outside its times it only unwraps.
        if operation == "unwrapKey" and not attributes["enabled"]:
            raise Refused(403, "Forbidden", f"Operation {words} is not allowed on a disabled key.", "KeyDisabled")
        if operation == "wrapKey" and attributes.get("nbf", 0) > now:
            raise Refused(403, "Forbidden", f"Operation {words} is not allowed on a key that is not yet valid.", "KeyNotYetValid")
        if operation == "wrapKey" and attributes.get("exp", now + 1) <= now:
            raise Refused(403, "Forbidden", f"Operation {words} is not allowed on an expired key.", "KeyExpired")
        if operation not in self.operations:
            raise Refused(403, "Forbidden", f"Operation {words} is not permitted on this key.", "KeyOperationForbidden")
        if algorithm != "RSA-OAEP-256" or not self.private:
            raise Refused(400, "BadParameter", "Key and signing algorithm are incompatible.")
        try:
            if operation == "wrapKey":
                return self.private.public_key().encrypt(value, OAEP)
            return self.private.decrypt(value, OAEP)
        except ValueError:
            raise Refused(400, "BadParameter", "The parameter is incorrect.\r\n") from None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    secure = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer("GET")

    def do_POST(self):
        self.answer("POST")

    def answer(self, method):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        state = self.server.state
        with state.lock:
            try:
                status, answer, headers = 200, self.route(state, method, url.path, query, body), {}
            except (Refused, TokenRefused) as refused:
                status, answer, headers = refused.status, refused.body, refused.headers
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def route(self, state, method, path, query, body):
        if not self.secure:
            if path.startswith("/test/"):
                return self.operate(state, path, json.loads(body or b"{}"))
            return self.metadata(state, method, path, query)
        if path.endswith("/oauth2/v2.0/token"):
            return self.authorize(state, method, path, body)
        return self.vault(state, method, path, query, body)

    # Who gives tokens.

    def authorize(self, state, method, path, body):
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        if method != "POST" or self.headers.get("Content-Type") != "application/x-www-form-urlencoded" or form.get("grant_type") != "client_credentials":
            raise TokenRefused(400, "invalid_request", "AADSTS900144: The request body must contain the parameter: 'grant_type'.")
        tenant = unquote(path.split("/")[1])
        application = state.applications.get(form.get("client_id"))
        if tenant not in {one["tenant"] for one in state.applications.values()}:
            raise TokenRefused(400, "invalid_request", f"AADSTS90002: Tenant '{tenant}' not found.")
        if not application or application["tenant"] != tenant:
            raise TokenRefused(400, "unauthorized_client", "AADSTS700016: Application was not found in the directory.")
        if form.get("client_secret") != application["secret"]:
            raise TokenRefused(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.")
        scope = form.get("scope", "")
        if not scope.endswith("/.default"):
            raise TokenRefused(400, "invalid_scope", "AADSTS1002012: The provided value for scope is not valid.")
        token = state.token(form["client_id"], scope.removesuffix("/.default"))
        return {"token_type": "Bearer", "expires_in": state.lifetime, "ext_expires_in": state.lifetime, "access_token": token}

    def metadata(self, state, method, path, query):
        if method != "GET" or path != "/metadata/identity/oauth2/token" or self.headers.get("Metadata") != "true" or query.get("api-version") != "2018-02-01":
            raise TokenRefused(400, "bad_request_102", "Required metadata header not specified")
        client_id = query.get("client_id", "")
        if client_id not in state.machine:
            raise TokenRefused(400, "invalid_request", "Identity not found")
        token = state.token(client_id, query["resource"])
        return {"access_token": token, "client_id": client_id, "expires_in": str(state.lifetime), "expires_on": str(int(time.time()) + state.lifetime), "resource": query["resource"], "token_type": "Bearer"}

    # The vault.

    def vault(self, state, method, path, query, body):
        caller = state.caller(self.headers.get("Authorization"))
        if query.get("api-version") != "7.4":
            raise Refused(400, "BadParameter", "The specified version is not recognized. Consider using the latest supported version.")
        if state.throttled:
            state.throttled -= 1
            raise Refused(429, "Throttled", "Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached", headers={"Retry-After": "1"})
        parts = path.strip("/").split("/")
        match (method, parts):
            case ("GET", ["keys"]):
                state.permit(caller, "list")
                return self.page(state, query)
            case ("GET", ["deletedkeys", name]):
                state.permit(caller, "get")
                if name not in state.deleted:
                    raise Refused(404, "KeyNotFound", f"Deleted Key not found: {name}")
                versions, purged = state.deleted[name]
                more = {"recoveryId": f"{state.origin}/deletedkeys/{name}", "deletedDate": int(time.time()), "scheduledPurgeDate": purged}
                return versions[-1].bundle() | more
            case ("GET", ["keys", name, *version]):
                state.permit(caller, "get")
                return self.find(state, name, version).bundle()
            case ("POST", ["keys", name, "create"]):
                state.permit(caller, "create")
                asked = json.loads(body)
                return self.create(state, name, asked["kty"], asked.get("key_size", 2048), asked["key_ops"])
            case ("POST", ["keys", name, version, ("wrapkey" | "unwrapkey") as call]):
                operation = {"wrapkey": "wrapKey", "unwrapkey": "unwrapKey"}[call]
                state.permit(caller, operation)
                key, asked = self.find(state, name, [version]), json.loads(body)
                try:
                    value = unb64(asked["value"])
                except ValueError:
                    raise Refused(400, "BadParameter", "Property value has an invalid value.") from None
                return {"kid": key.kid, "value": b64(key.use(operation, value, asked["alg"]))}
        raise Refused(405, "MethodNotAllowed", "The HTTP method is not allowed.")

    def find(self, state, name, version):
        for key in reversed(state.keys.get(name, [])):
            if not version or key.version == version[0]:
                return key
        message = f"A key with (name/id) {name}/{''.join(version)} was not found in this key vault. If you recently deleted this key you may be able to recover it using the correct recovery command."
        raise Refused(404, "KeyNotFound", message)

    def create(self, state, name, kind, size, operations):
        if name in state.deleted:
            message = f"Key {name} is currently in a deleted but recoverable state, and its name cannot be reused; in this state, the key can only be recovered or purged."
            raise Refused(409, "Conflict", message, "ObjectIsDeletedButRecoverable")
        key = Key(state.origin, name, kind, size, operations)
        state.keys.setdefault(name, []).append(key)
        return key.bundle()

    def page(self, state, query):
        names = sorted(state.keys)
        at = int(query.get("$skiptoken", "0"))
        items = [{"kid": f"{state.origin}/keys/{name}", "attributes": state.keys[name][-1].attributes} for name in names[at : at + PAGE]]
        more = at + PAGE < len(names)
        following = f"{state.origin}/keys?api-version=7.4&$skiptoken={at + PAGE}&maxresults={PAGE}"
        return {"value": items, "nextLink": following if more else None}

    # What an operator does.

    def operate(self, state, path, asked):
        if self.headers.get("X-Admin") != state.admin:
            raise Refused(403, "Forbidden", "not the test")
        name = asked.get("key")
        match path.removeprefix("/test/"):
            case "application":
                state.applications[asked["client-id"]] = {"secret": asked["secret"], "tenant": asked["tenant"]}
            case "machine":
                state.machine.add(asked["client-id"])
            case "permissions":
                state.permissions[asked["client-id"]] = set(asked["permissions"])
            case "create":
                return self.create(state, name, asked.get("kty", "RSA"), asked.get("size", 2048), asked.get("operations", ["wrapKey", "unwrapKey"]))
            case "attributes":
                for key in state.keys[name]:
                    key.attributes |= asked["attributes"]
            case "operations":
                for key in state.keys[name]:
                    key.operations = asked["operations"]
            case "delete":
                state.deleted[name] = (state.keys.pop(name), int(time.time()) + 7 * 86400)
            case "recover":
                state.keys[name] = state.deleted.pop(name)[0]
            case "purge":
                state.keys.pop(name, None)
                state.deleted.pop(name, None)
            case "lifetime":
                state.lifetime = asked["seconds"]
            case "throttle":
                state.throttled = asked["requests"]
            case "calls":
                calls, state.calls = state.calls, []
                return {"calls": calls}
            case _:
                raise Refused(404, "NotFound", path)
        return {}


class PlainHandler(Handler):
    secure = False


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler, state, context=None):
        super().__init__(("127.0.0.1", 0), handler)
        self.state, self.context = state, context

    def finish_request(self, request, address):
        # In the connection's own thread: a client that says nothing holds up nobody else.
        if self.context:
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, address)

    def handle_error(self, request, address):
        # Clients that go away, or do not trust the certificate.
        kind = sys.exc_info()[0]
        if not issubclass(kind, OSError):
            super().handle_error(request, address)


def main():
    certificate, key, admin = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    state = State(admin)
    servers = [Server(Handler, state, context), Server(PlainHandler, state)]
    state.origin = f"https://localhost:{servers[0].server_port}"
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"tls": servers[0].server_port, "plain": servers[1].server_port}), flush=True)
    sys.stdin.read()


main()
