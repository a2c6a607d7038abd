"""Sockets: TLS with mutual certificates, HTTP/1.1 and framed calls between nodes. Carries bytes, knows no keys."""
