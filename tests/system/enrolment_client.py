"""A client of the enrolment test, a process of its own: enrols devices one after the other and survives its server.

Usage: enrolment_client.py PORT ANCHOR.pem TOKENS RESULTS. TOKENS has a line "DEVICE TOKEN" for each device, RESULTS
gets a line "DEVICE CERTIFICATE" in base64 for each. It keeps one connection, and asks again with the same request
whenever the answer is lost; now and then it asks again although the answer came, and wants the same certificate.
"""

import base64
import http.client
import random
import ssl
import sys
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID

AGAIN = 0.02  # of the requests are repeated for no reason
PATIENCE_S = 120


class Client:
    def __init__(self, port, anchor):
        self.port, self.retries = port, 0
        self.context = ssl.create_default_context(cafile=anchor)
        self.connection = None

    def enrol(self, device, token, body):
        credentials = base64.b64encode(f"{device}:{token}".encode()).decode()
        headers = {"Content-Type": "application/pkcs10", "Authorization": "Basic " + credentials}
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPSConnection(
                        "127.0.0.1", self.port, context=self.context, timeout=20
                    )
                self.connection.request("POST", "/.well-known/est/simpleenroll", body=body, headers=headers)
                response = self.connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException):
                self.connection = None
                self.retries += 1
                time.sleep(0.1 + 0.1 * random.random())
                continue
            if response.status == 200:
                (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer))
                return certificate.public_bytes(Encoding.DER)
            if response.status not in (429, 503):
                raise SystemExit(f"{device}: {response.status} {answer!r}")
            time.sleep(0.5)
        raise SystemExit(f"{device}: no answer for {PATIENCE_S} s")


def main():
    port, anchor, tokens, results = sys.argv[1:]
    devices = [line.split() for line in Path(tokens).read_text().splitlines()]
    client, chance = Client(int(port), anchor), random.Random(tokens)
    with Path(results).open("w") as out:
        for device, token in devices:
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, device)])
            request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
            body = base64.encodebytes(request.public_bytes(Encoding.DER))
            certificate = client.enrol(device, token, body)
            if chance.random() < AGAIN and client.enrol(device, token, body) != certificate:
                raise SystemExit(f"{device}: another certificate for the same request")
            if x509.load_der_x509_certificate(certificate).public_key() != key.public_key():
                raise SystemExit(f"{device}: a certificate for another key")
            out.write(f"{device} {base64.b64encode(certificate).decode()}\n")
    sys.stdout.write(f"{client.retries}\n")


if __name__ == "__main__":
    main()
