"""Reads this machine's settings for Debian mirrors, pip, certificates and proxies, with the standard library only."""

import ast
import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # where debootstrap is, which is not on every user's path
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
PIP_OPTIONS = "CERT DEFAULT_TIMEOUT EXTRA_INDEX_URL FIND_LINKS INDEX_URL NO_INDEX PROXY RETRIES TIMEOUT TRUSTED_HOST"
SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def apt_mirrors(folder="/etc/apt"):
    """The mirrors of apt's sources with a component main, in order, each once. Reads one-line and deb822 files."""
    found = []
    folder = Path(folder)
    for path in [folder / "sources.list", *sorted(folder.glob("sources.list.d/*.list"))]:
        for line in path.read_text().splitlines() if path.exists() else []:
            words = re.sub(r"\[[^]]*\]", "", line.split("#")[0]).split()
            if words[:1] == ["deb"] and "main" in words[3:]:
                found.append(words[1])
    for path in sorted(folder.glob("sources.list.d/*.sources")):
        text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)
        for stanza in re.split(r"\n\s*\n", text):
            pairs = re.findall(r"^([\w-]+):(.*\n?(?:[ \t].*\n?)*)", stanza, re.MULTILINE)
            fields = {name.lower(): value.split() for name, value in pairs}
            on = fields.get("enabled", ["yes"]) != ["no"]
            if on and "deb" in fields.get("types", []) and "main" in fields.get("components", []):
                found += fields.get("uris", [])
    return list(dict.fromkeys(uri for uri in found if uri.startswith(("http:", "https:", "file:"))))


def proxies():
    """The proxy variables that are set, or else the proxy that apt is configured to use."""
    found = {name: os.environ[name] for name in PROXY_VARIABLES if os.environ.get(name)}
    if "http_proxy" not in found and shutil.which("apt-config"):
        command = ["apt-config", "shell", "proxy", "Acquire::http::Proxy"]
        answer = subprocess.run(command, capture_output=True, text=True).stdout
        if answer.startswith("proxy="):
            found["http_proxy"] = ast.literal_eval(answer.strip().partition("=")[2])
    return found


def pip_settings():
    """The package sources in pip's configuration files and PIP_ variables, as PIP_ variables."""
    home = Path.home()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = ["/etc/xdg/pip/pip.conf", "/etc/pip.conf", home / ".pip/pip.conf", config / "pip/pip.conf"]
    parser = configparser.RawConfigParser()
    parser.read([*files, os.environ.get("PIP_CONFIG_FILE", "")])  # as in pip: what is read later overrides
    settings = {}
    for section in ("global", "install"):
        for name, value in parser.items(section) if parser.has_section(section) else []:
            settings["PIP_" + name.upper().replace("-", "_")] = " ".join(value.split())
    settings.update(os.environ)
    return {name: settings[name] for name in map("PIP_{}".format, PIP_OPTIONS.split()) if settings.get(name)}


def local_package_folders():
    """Folders of this machine that pip or apt take packages from. An index (.../simple) links to the folder above."""
    settings = pip_settings()
    words = [os.environ.get("FASTBATCH_DEBIAN_MIRROR", ""), *apt_mirrors()]
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        words += settings.get(name, "").split()
    folders = set()
    for word in words:
        path = Path(unquote(urlsplit(word).path)) if word.startswith("file:") else Path(word)
        if path.name == "simple":
            path = path.parent
        if path.is_absolute() and path != Path("/") and path.is_dir():
            folders.add(path)
    return sorted(folders)


def ca_bundle():
    """The file of certificates that this machine trusts, or None."""
    settings = pip_settings()
    variables = [os.environ.get(name) for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")]
    for path in (settings.get("PIP_CERT"), *variables, SYSTEM_BUNDLE):
        if path and Path(path).is_file():
            return path
    return None
