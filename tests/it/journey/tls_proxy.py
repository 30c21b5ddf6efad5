"""HTTPS in front of plain servers on loopback, so that clients that insist on it reach the simulator.

    python tls_proxy.py CERTIFICATE_FILE UPSTREAM_URL…

Writes its own certificate to the file, then one URL for each upstream to standard output, and serves until its standard
input ends. In bodies and headers it replaces each upstream's URL by its own.
"""

import datetime
import http.server
import ipaddress
import ssl
import sys
import tempfile
import threading
import urllib.error
import urllib.request

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def certificate():
    """A key and its self-signed certificate for 127.0.0.1, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    unencrypted = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unencrypted)
    return private, signed.public_bytes(serialization.Encoding.PEM)


class NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments):
        return None


OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirects)


def handler(upstream, replacements):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            length = int(self.headers.get("content-length", 0))
            body = self.rfile.read(length) if length else None
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
            request = urllib.request.Request(upstream + self.path, method=self.command, headers=headers, data=body)
            try:
                response = OPENER.open(request, timeout=30)
            except urllib.error.HTTPError as error:
                response = error
            content = response.read()
            for theirs, ours in replacements:
                content = content.replace(theirs.encode(), ours.encode())
            self.send_response(response.status)
            for name, value in response.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = forward

        def log_message(self, *arguments):
            pass

    return Handler


def main(certificate_file, *upstreams):
    private, public = certificate()
    with open(certificate_file, "wb") as file:
        file.write(public)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as chain:
        chain.write(private + public)
        chain.flush()
        context.load_cert_chain(chain.name)
    replacements = []
    for upstream in upstreams:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(upstream, replacements))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        replacements.append((upstream, f"https://127.0.0.1:{server.server_port}"))
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(*(ours for _, ours in replacements), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
