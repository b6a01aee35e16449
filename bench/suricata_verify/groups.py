"""Sorts cases by the keywords of their rules: strict, core, other. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import StrEnum


class Group(StrEnum):
    """What a case needs: the smallest that has all its keywords and protocols."""

    STRICT = "strict"
    CORE = "core"
    OTHER = "other"


_SAID = "msg sid rev gid classtype reference priority metadata target requires"
_PAYLOAD = (
    "content nocase offset depth distance within startswith endswith rawbytes fast_pattern pcre bsize dsize isdataat "
    "byte_test byte_jump byte_extract flow flowbits threshold detection_filter noalert"
)
_HEADERS = (
    "flags tcp.flags ttl tos id ipopts ip_proto sameip fragbits fragoffset seq tcp.seq ack tcp.ack window tcp.window "
    "tcp.mss tcp.hdr tcp.wscale udp.hdr ipv4.hdr ipv6.hdr icmpv4.hdr icmpv6.hdr icmpv6.mtu itype icode icmp_id icmp_seq"
)
_BUFFERS = (
    "uricontent http.uri http.uri.raw http.method http.header http.header.raw http.cookie http.user_agent http.host "
    "http.host.raw http.request_body http.response_body http.stat_code http.stat_msg http.content_type "
    "http.content_len http.accept http.accept_lang http.accept_enc http.referer http.connection http.protocol "
    "http.start http.header_names http.request_line http.response_line http.server http.location "
    "http_uri http_raw_uri http_method http_header http_raw_header http_cookie http_user_agent http_host "
    "http_raw_host http_client_body http_server_body http_stat_code http_stat_msg "
    "dns.query dns_query dns.opcode dns.rcode dns.rrtype "
    "tls.sni tls_sni tls.cert_subject tls.cert_issuer tls.cert_serial tls.cert_fingerprint tls.subject tls.issuerdn "
    "tls.version tls_cert_subject tls_cert_issuer tls_cert_serial tls_cert_notbefore tls_cert_notafter"
)
STRICT = frozenset(f"{_SAID} {_PAYLOAD} {_HEADERS} {_BUFFERS}".split())
_BEYOND = (
    "dataset iprep xbits hostbits flowint file_data file.data pkt_data base64_decode base64_data byte_math urilen "
    "app-layer-protocol app-layer-event decode-event stream-event engine-event stream_size tag absent prefilter "
    "to_lowercase to_uppercase to_md5 to_sha1 to_sha256 strip_whitespace compress_whitespace dotprefix domain tld "
    "url_decode xor header_lowercase strip_pseudo_headers pcrexform from_base64 casechange gunzip zlib_deflate "
    "ssl_version ssl_state replace bypass"
)
CORE = STRICT | frozenset(_BEYOND.split())
_CORE_PREFIXES = ("http.", "http_", "dns.", "dns_", "tls.", "tls_", "ja3", "ja4", "flow.")
_PROTOCOL_NAMES = "tcp udp icmp icmpv6 ip ipv4 ipv6 ip4 ip6 pkthdr tcp-pkt tcp-stream http http1 dns tls ssl"
_PROTOCOLS = frozenset(_PROTOCOL_NAMES.split())
_ACTIONS = r"(?:alert|drop|pass|reject|rejectsrc|rejectdst|rejectboth|config)"
_RULE = re.compile(rf"\s*{_ACTIONS}\s+(\S+)\s[^(]*\((.*)\)\s*\Z", re.DOTALL)
_OPTION = re.compile(r'((?:\\.|"(?:\\.|[^"\\])*"|[^;\\"])*);', re.DOTALL)


def group_of(rule_texts: Iterable[str]) -> Group:
    """Return the group of a case with these rule files; a case without rules is of ``other``."""
    rules = [rule for text in rule_texts for rule in read_rules(text)]
    if not rules:
        return Group.OTHER
    keywords = {keyword for _, keywords in rules for keyword in keywords}
    protocols = {protocol for protocol, _ in rules}
    if protocols <= _PROTOCOLS and keywords <= STRICT:
        return Group.STRICT
    if protocols <= _PROTOCOLS and all(word in CORE or word.startswith(_CORE_PREFIXES) for word in keywords):
        return Group.CORE
    return Group.OTHER


def read_rules(text: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield each rule's protocol and the names of its keywords; what is no rule is passed over."""
    for line in text.replace("\\\n", " ").splitlines():
        found = _RULE.match(line)
        if found is not None:
            options = (option.strip() for option in _OPTION.findall(found[2]))
            names = (option.partition(":")[0].strip().lower() for option in options if option)
            yield found[1].lower(), frozenset(names)
