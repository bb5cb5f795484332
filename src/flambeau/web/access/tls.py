"""TLS from a certificate and its key, in two files of PEM. Versions before 1.2 are not spoken."""

import ssl

from flambeau.config import Settings
from flambeau.errors import ConfigError


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """What the server encrypts with; `None` when it is not asked to. Raises `ConfigError`."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        given, missing = ("--tls-certificate", "--tls-key") if key is None else ("--tls-key", "--tls-certificate")
        raise ConfigError(f"{given} is given without {missing}: TLS needs both")
    for flag, file in (("--tls-certificate", certificate), ("--tls-key", key)):
        try:
            with open(file, "rb"):
                pass
        except OSError as error:
            raise ConfigError(f"{flag} {file} cannot be read ({error.strerror}): give a file in PEM") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        why = str(error)
        if "KEY_VALUES_MISMATCH" in why or "key values mismatch" in why:
            why = "the key belongs to another certificate"
        elif "PEM lib" in why:
            why = "one of them is not in PEM, or they are of different kinds"
        raise ConfigError(f"--tls-certificate {certificate} and --tls-key {key} cannot be used: {why}") from error
    return context


def _no_password() -> str:
    """Instead of OpenSSL's own question on the terminal, for which a service would wait for ever."""
    raise ValueError("the key is encrypted: take the password off with openssl pkey")
