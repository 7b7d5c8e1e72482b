"""Ask the repository's server one thing over TLS, as anybody could, and print the answer's status.

ask.py HOST METHOD PATH CERTIFICATE|- CA [PASSWORD]
"""

import base64
import http.client
import ssl
import sys

host, method, path, certificate, ca, *password = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
if certificate != "-":
    context.load_cert_chain(certificate, certificate.replace(".other", "").replace(".pem", ".key"))
door = {"Authorization": "Basic " + base64.b64encode(f"restic:{password[0]}".encode()).decode()} if password else {}
connection = http.client.HTTPSConnection(host, 8433, timeout=10, context=context)
try:
    connection.request(method, path, body=b"x" if method == "POST" else None, headers=door)
    print(connection.getresponse().status)
except OSError as error:
    print(error)
