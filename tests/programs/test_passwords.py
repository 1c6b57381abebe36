"""A file of users and the hashes of their passwords."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import hmac
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from freebsd_splice.proxies import OpenTarget, ProxyServer, _passwords, socks5_connect
from freebsd_splice.proxies._mistakes import Mistakes
from freebsd_splice.proxies._passwords import Passwords, make_entry
from programs.processes import PATIENCE
from programs.test_server import running

SALT = b"8 bytes."


def entry(user: str, password: str, **changed: Any) -> str:
    """One that costs little."""
    digest = hashlib.scrypt(password.encode(), salt=SALT, n=1024, r=8, p=1, dklen=16)
    return line(user, **{"salt": SALT, "digest": digest, **changed})


def line(
    user: str, ln: int = 10, r: int = 8, p: int = 1, salt: Any = SALT, digest: Any = b""
) -> str:
    return f"{user}:$scrypt$ln={ln},r={r},p={p}${unpadded(salt)}${unpadded(digest)}"


def unpadded(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "passwords"


@pytest.fixture
def read(opened: ExitStack, path: Path) -> Callable[..., Passwords]:
    """Writes the lines to the file and reads it."""

    def written_and_read(*lines: str) -> Passwords:
        write(path, *lines)
        return opened.enter_context(closing(Passwords(path)))

    return written_and_read


def write(path: Path, *lines: str) -> None:
    """As a new file, so that it has changed however little time has passed."""
    new = path.with_name("new")
    new.write_bytes("".join(f"{text}\n" for text in lines).encode("utf-8", "surrogateescape"))
    new.replace(path)


def verify(passwords: Passwords, user: str, password: str) -> bool:
    return asyncio.run(passwords.verify(user, password))


class Scrypt:
    """hashlib's, and what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.threads: set[threading.Thread] = set()
        self.most_at_once = 0
        self.original = hashlib.scrypt
        self._now = 0

    def __call__(self, secret: bytes, **options: Any) -> bytes:
        self.asked.append({"secret": secret, **options})
        self.threads.add(threading.current_thread())
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            return self.original(secret, **options)
        finally:
            self._now -= 1


@pytest.fixture
def scrypt(monkeypatch: pytest.MonkeyPatch) -> Scrypt:
    counted = Scrypt()
    monkeypatch.setattr(hashlib, "scrypt", counted)
    return counted


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    monkeypatch.setattr(hashlib, "scrypt", made)
    yield made
    made.opened.set()


class Gate:
    """A scrypt that says when it begins, and ends when it is let."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.opened = threading.Event()
        self.secrets: list[bytes] = []

    def __call__(self, secret: bytes, *, dklen: int, **_: object) -> bytes:
        self.secrets.append(secret)
        self.begun.set()
        assert self.opened.wait(PATIENCE)
        return bytes(dklen)


def test_the_password_of_a_user(read: Callable[..., Passwords]) -> None:
    passwords = read(entry("user", "secret"), entry("Ünal", "pässword €"), entry("colon", "a:b"))
    assert verify(passwords, "user", "secret")
    assert verify(passwords, "Ünal", "pässword €")
    assert verify(passwords, "colon", "a:b")
    for wrong in ("", "Secret", "secret ", "pässword €", "\ud800"):
        assert not verify(passwords, "user", wrong)
    for nobody in ("", "User", "user ", "user:", "\ud800", "#user"):
        assert not verify(passwords, nobody, "secret")


@pytest.mark.parametrize(
    ("password", "hashed"),
    [
        # RFC 7914, section 12.
        (
            "pleaseletmein",
            line(
                "user",
                ln=14,
                salt=b"SodiumChloride",
                digest=bytes.fromhex(
                    "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
                    "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
                ),
            ),
        ),
        # The example of passlib's manual.
        (
            "password",
            "user:$scrypt$ln=16,r=8,p=1$aM15713r3Xsvxbi31lqr1Q"
            "$nFNh2CVHVjNldFVKDHDlm4CbdRSCdEBsjjJxD+iCs5E",
        ),
    ],
)
def test_hashes_that_others_made(
    read: Callable[..., Passwords], password: str, hashed: str
) -> None:
    passwords = read(hashed)
    assert verify(passwords, "user", password)
    assert not verify(passwords, "user", password + " ")


def test_an_entry_that_was_made_is_read(read: Callable[..., Passwords]) -> None:
    made = make_entry("Ünal", "pässword €")
    assert made.startswith("Ünal:$scrypt$ln=14,r=8,p=1$")
    assert [len(part) for part in made.split("$")[3:]] == [22, 43]
    assert verify(read(made), "Ünal", "pässword €")


def test_every_entry_has_its_own_salt() -> None:
    assert make_entry("user", "secret") != make_entry("user", "secret")


@pytest.mark.parametrize(
    ("user", "password", "complaint"),
    [
        ("", "secret", "the name of the user is empty"),
        ("a:b", "secret", "no colon"),
        ("a\nb", "secret", "no control character"),
        ("a\0", "secret", "no control character"),
        ("a\x7f", "secret", "no control character"),
        ("a\x85b", "secret", "no control character"),
        ("#a", "secret", "can't begin with #"),
        (" a", "secret", "no space around it"),
        ("a ", "secret", "no space around it"),
        ("user", "", "the password is empty"),
    ],
)
def test_what_can_be_no_entry(user: str, password: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make_entry(user, password)


def test_comments_and_empty_lines(read: Callable[..., Passwords]) -> None:
    passwords = read("# comment", "", "  ", f"  {entry('a#b', 'secret')}\r", "  # indented")
    assert verify(passwords, "a#b", "secret")


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ("user", r"must be user:\$scrypt"),
        ("user:secret", r"must be user:\$scrypt"),
        ("user:$2b$12$abcdefghijklmnopqrstuv", r"must be user:\$scrypt"),
        (entry("user", "x") + ":", r"must be user:\$scrypt"),
        (entry("user", "x") + "=", r"must be user:\$scrypt"),
        (line("user", digest=b""), r"must be user:\$scrypt"),
        (line("user", ln=0, digest=SALT), r"must be user:\$scrypt"),
        (line("user", p=0, digest=SALT), r"must be user:\$scrypt"),
        (line("user", ln=10**9, digest=SALT), r"must be user:\$scrypt"),
        (line("user", r=-1, digest=SALT), r"must be user:\$scrypt"),
        (":" + entry("user", "x").partition(":")[2], "name of the user is empty"),
        (entry("us\ter", "x"), "no control character"),
        (entry("user", "x"), "user 'user' is there already"),
        (entry("other", "x") + "AAA", "data characters"),
        (entry("other", "x", ln=9), "ln must be from 10 to 20"),
        (entry("other", "x", ln=21, r=1), "ln must be from 10 to 20"),
        (entry("other", "x", ln=16, r=1), "ln must be from 10 to 20"),
        (entry("other", "x", ln=999_999_999), "ln must be from 10 to 20"),
        (entry("other", "x", ln=10, r=2049), "at most 256 MiB"),
        (entry("other", "x", ln=18, p=2), "at most 256 MiB"),
        (entry("other", "x", salt=b"7 bytes"), "the salt must have from 8 to 64 bytes"),
        (entry("other", "x", salt=bytes(65)), "the salt must have"),
        (entry("other", "x", digest=bytes(15)), "the hash from 16 to 64"),
        (entry("other", "x", digest=bytes(65)), "the hash from 16 to 64"),
        ("\udcff:", "not UTF-8"),
    ],
)
def test_what_is_no_entry(
    read: Callable[..., Passwords], path: Path, bad: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as raised:
        read("# comment", entry("user", "secret"), bad)
    assert str(raised.value).startswith(f"{path}, line 3: ")


def test_all_lines_that_are_wrong_are_known(read: Callable[..., Passwords], path: Path) -> None:
    """As far as they fit a screen: another file's lines are all wrong."""
    with pytest.raises(Mistakes) as caught:
        read("alice", entry("bob", "secret"), *(["x"] * 100))
    assert [each.partition(": ")[0] for each in caught.value.mistakes] == [
        f"{path}, line {line}" for line in (1, *range(3, 22))
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"ln": 10, "r": 1, "p": 2048},
        {"ln": 10, "r": 2048},
        {"ln": 18, "r": 8},
        {"ln": 20, "r": 2},
        {"salt": bytes(64)},
        {"digest": bytes(64)},
    ],
)
def test_what_is_just_in_bounds(
    read: Callable[..., Passwords], changed: dict[str, Any], gate: Gate
) -> None:
    gate.opened.set()
    assert verify(read(line("user", **{"digest": bytes(16), **changed})), "user", "secret")


@pytest.mark.parametrize(
    "changed", [{"p": 64}, {"ln": 15, "r": 1}, {"r": 64}, {"salt": bytes(64)}, {"ln": 11}]
)
def test_hashes_of_other_parameters(
    read: Callable[..., Passwords], changed: dict[str, Any], scrypt: Scrypt
) -> None:
    """OpenSSL is allowed the memory that they take."""
    assert not verify(read(entry("user", "secret", **changed)), "user", "secret")
    asked = scrypt.asked[-1]
    expected = {"ln": 10, "r": 8, "p": 1, "salt": SALT, **changed}
    assert asked["n"] == 1 << int(expected["ln"])
    for name in ("r", "p", "salt"):
        assert asked[name] == expected[name]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Passwords(tmp_path / "missing")
    with pytest.raises(OSError):
        Passwords(tmp_path)


def test_a_changed_file_is_read_again(read: Callable[..., Passwords], path: Path) -> None:
    passwords = read(entry("user", "old"), entry("other", "same"))
    assert verify(passwords, "user", "old")
    assert verify(passwords, "other", "same")
    write(path, entry("user", "new"))
    assert not verify(passwords, "user", "old")
    assert verify(passwords, "user", "new")
    assert not verify(passwords, "other", "same")


@pytest.mark.parametrize("changed", ["time", "size", "inode"])
def test_what_shows_that_a_file_has_changed(
    read: Callable[..., Passwords], path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """One thing is another, and all else is as it was."""
    passwords = read(entry("user", "old"))
    before = path.stat()
    write(path, entry("user", "new"))
    order = {"time": (9, 0, 0), "size": (0, 9, 0), "inode": (0, 0, 9)}[changed]

    class Found:
        st_mtime_ns = before.st_mtime_ns + order[0]
        st_ctime_ns = before.st_ctime_ns
        st_size = before.st_size + order[1]
        st_ino = before.st_ino + order[2]

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Path, "stat", lambda self, **_: Found)
        assert verify(passwords, "user", "new")


def test_an_unchanged_file_is_not_read_again(
    read: Callable[..., Passwords], monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords = read(entry("user", "secret"))
    monkeypatch.delattr(Path, "read_bytes")
    assert verify(passwords, "user", "secret")


def test_a_file_that_is_broken_later_keeps_what_it_had(
    read: Callable[..., Passwords], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passwords = read(entry("user", "secret"))
    for _ in range(2):
        caplog.clear()
        write(path, "nonsense")
        for _ in range(2):
            assert verify(passwords, "user", "secret")
        [record] = caplog.records
        assert (record.name, record.levelno) == ("freebsd_splice.proxies", logging.WARNING)
        assert record.getMessage().startswith(f"{path}, line 1: the line must be")
        assert record.getMessage().endswith("; the passwords read before still hold")
    write(path, entry("user", "new"))
    assert verify(passwords, "user", "new")
    assert len(caplog.records) == 1


def test_a_file_that_goes_later_keeps_what_it_had(
    read: Callable[..., Passwords], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passwords = read(entry("user", "0"))
    for password in ("0", "1"):
        caplog.clear()
        path.unlink()
        for _ in range(2):
            assert verify(passwords, "user", password)
        [message] = caplog.messages
        assert message.startswith(f"{path}: No such file or directory; ")
        write(path, entry("user", str(int(password) + 1)))
        assert verify(passwords, "user", str(int(password) + 1))


def test_a_file_that_could_not_be_read_for_a_while_is_read_then(
    read: Callable[..., Passwords],
    path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Too few descriptors: that passes, and the file need not change."""
    passwords = read(entry("user", "old"))
    write(path, entry("user", "new"))

    def too_many(_: Path) -> bytes:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as shortage:
        shortage.setattr(Path, "read_bytes", too_many)
        for _ in range(2):
            assert verify(passwords, "user", "old")
        [message] = caplog.messages
        assert message.startswith(f"{path}: Too many open files; raise ulimit -n ")
    assert not verify(passwords, "user", "old")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such time")
def test_a_change_of_mode_is_a_change(
    read: Callable[..., Passwords], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords = read("# nobody")
    write(path, "nonsense")
    assert not verify(passwords, "user", "secret")
    monkeypatch.setattr(Path, "read_bytes", lambda _: entry("user", "secret").encode())
    assert not verify(passwords, "user", "secret")
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        path.chmod(0o600)
    assert verify(passwords, "user", "secret")


def test_a_right_pair_is_remembered(read: Callable[..., Passwords], scrypt: Scrypt) -> None:
    passwords = read(entry("user", "secret"), entry("other", "other"))
    scrypt.asked.clear()
    for _ in range(3):
        assert verify(passwords, "user", "secret")
    assert len(scrypt.asked) == 1
    assert not verify(passwords, "other", "secret")
    assert not verify(passwords, "user", "other")
    assert len(scrypt.asked) == 3


def test_a_wrong_pair_is_not_remembered(read: Callable[..., Passwords], scrypt: Scrypt) -> None:
    passwords = read(entry("user", "secret"))
    scrypt.asked.clear()
    for _ in range(3):
        assert not verify(passwords, "user", "wrong")
        assert not verify(passwords, "nobody", "secret")
    assert len(scrypt.asked) == 6


def test_no_more_than_some_pairs_are_remembered(
    read: Callable[..., Passwords], scrypt: Scrypt, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _passwords.REMEMBERED == 1_024
    monkeypatch.setattr(_passwords, "REMEMBERED", 2)
    passwords = read(*(entry(user, user) for user in "abc"))
    for user in "abc":
        assert verify(passwords, user, user)
    scrypt.asked.clear()
    for user in "bc":
        assert verify(passwords, user, user)
    assert scrypt.asked == []
    assert verify(passwords, "a", "a")
    assert [asked["secret"] for asked in scrypt.asked] == [b"a"]


def test_the_passwords_are_not_among_what_is_remembered(read: Callable[..., Passwords]) -> None:
    """Nor a hash that needs no key: two that read the same file remember other things."""
    made = [read(entry("user", "secret")) for _ in range(2)]
    for passwords in made:
        assert verify(passwords, "user", "secret")
    [first], [second] = (passwords._remembered for passwords in made)
    assert len(first) == len(second) == 32
    assert first != second


def test_a_user_that_does_not_exist_costs_a_hash(
    read: Callable[..., Passwords], scrypt: Scrypt
) -> None:
    passwords = read(make_entry("user", "secret"))
    scrypt.asked.clear()
    assert not verify(passwords, "user", "wrong")
    assert not verify(passwords, "nobody", "wrong")
    costs = [
        {name: value for name, value in asked.items() if name != "salt"} for asked in scrypt.asked
    ]
    assert len(costs) == 2
    assert costs[0] == costs[1]


def test_a_user_that_does_not_exist_costs_as_much_as_the_dearest(
    read: Callable[..., Passwords], path: Path, scrypt: Scrypt
) -> None:
    passwords = read(entry("cheap", "x"), entry("dear", "x", ln=12), entry("more", "x", p=3))

    def costs_of_nobody() -> tuple[int, int, int]:
        scrypt.asked.clear()
        assert not verify(passwords, "nobody", "wrong")
        [asked] = scrypt.asked
        return asked["n"], asked["r"], asked["p"]

    assert costs_of_nobody() == (1 << 12, 8, 1)
    write(path, entry("cheap", "x"), entry("dearer", "x", ln=11, p=9))
    assert costs_of_nobody() == (1 << 11, 8, 9)
    write(path, "# nobody")
    assert costs_of_nobody() == (1 << 14, 8, 1)


def test_hashes_are_compared_in_constant_time(
    read: Callable[..., Passwords], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def compare(first: bytes, second: bytes) -> bool:
        compared.append((first, second))
        return True

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert verify(read(entry("user", "secret", digest=bytes(16))), "user", "secret")
    [(first, second)] = compared
    assert {len(first), len(second)} == {16}
    assert bytes(16) in (first, second)


def test_hashes_are_computed_one_at_a_time_beside_the_loop(
    read: Callable[..., Passwords], scrypt: Scrypt
) -> None:
    passwords = read(entry("user", "secret"))
    scrypt.threads.clear()

    async def all_at_once() -> list[bool]:
        return await asyncio.gather(*(passwords.verify("user", text) for text in "abcde"))

    assert asyncio.run(all_at_once()) == [False] * 5
    assert scrypt.most_at_once == 1
    assert threading.current_thread() not in scrypt.threads
    # OpenSSL is taken down at the interpreter's exit, which therefore waits for a hash under way.
    assert not any(thread.daemon for thread in scrypt.threads)


def test_without_a_thread_no_password_is_verified(
    read: Callable[..., Passwords], monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords = read(entry("user", "secret"))

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="can't start new thread: passwords") as raised:
            verify(passwords, "user", "secret")
    assert raised.value.errno == errno.ENOMEM
    assert verify(passwords, "user", "secret")


def test_a_pair_verified_many_times_at_once_is_hashed_once(
    read: Callable[..., Passwords], scrypt: Scrypt
) -> None:
    passwords = read(entry("user", "secret"), entry("other", "other"))
    scrypt.asked.clear()

    async def all_at_once() -> list[bool]:
        several = ["secret", "wrong"] * 5
        return await asyncio.gather(
            *(passwords.verify("user", text, client) for client in "ab" for text in several)
        )

    assert asyncio.run(all_at_once()) == [True, False] * 10
    assert [asked["secret"] for asked in scrypt.asked] == [b"secret", b"wrong"]


def test_each_user_that_does_not_exist_costs_a_hash_of_its_own(
    read: Callable[..., Passwords], scrypt: Scrypt
) -> None:
    """Or two at once would take as long as one, and two that exist would not."""
    passwords = read(entry("user", "secret"))
    scrypt.asked.clear()

    async def two_at_once() -> None:
        await asyncio.gather(*(passwords.verify(user, "wrong") for user in ("no-one", "nobody")))

    asyncio.run(two_at_once())
    assert len(scrypt.asked) == 2


def test_a_user_that_is_called_like_a_line_is_not_the_lines(
    read: Callable[..., Passwords],
) -> None:
    text = entry("user", "secret")
    passwords = read(text)
    assert verify(passwords, "user", "secret")
    for user in (text, f"{text}\0user", f"\0{text}", ""):
        assert not verify(passwords, user, "secret")


def test_one_that_was_found_right_meanwhile_is_not_hashed_again(
    read: Callable[..., Passwords], scrypt: Scrypt
) -> None:
    passwords = read(entry("user", "secret"))
    assert verify(passwords, "user", "secret")
    scrypt.asked.clear()
    known = passwords._entries["user"]
    mark = passwords._mark(known, "user", b"secret")
    assert passwords._matches(mark, known, b"secret")
    assert scrypt.asked == []


def test_one_clients_wrong_passwords_do_not_keep_another_waiting(
    read: Callable[..., Passwords], gate: Gate
) -> None:
    passwords = read(line("user", digest=bytes(16)))

    async def all_at_once() -> None:
        many = [
            asyncio.create_task(passwords.verify("user", f"guess {n}", "greedy")) for n in range(50)
        ]
        while not gate.begun.is_set():
            await asyncio.sleep(0)
        one = asyncio.create_task(passwords.verify("user", "secret", "modest"))
        await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(one, *many)

    asyncio.run(all_at_once())
    assert gate.secrets.index(b"secret") <= 2


def test_the_loop_goes_on_meanwhile(read: Callable[..., Passwords], gate: Gate) -> None:
    passwords = read(line("user", digest=bytes(16)))

    async def verify_while_the_loop_runs() -> bool:
        verifying = asyncio.create_task(passwords.verify("user", "secret"))
        while not gate.begun.is_set():
            await asyncio.sleep(0)
        assert not verifying.done()
        gate.opened.set()
        return await verifying

    assert asyncio.run(verify_while_the_loop_runs())


def test_nothing_is_computed_for_one_who_has_gone(
    read: Callable[..., Passwords], gate: Gate
) -> None:
    passwords = read(line("user", digest=bytes(16)))

    async def one_goes() -> None:
        first = asyncio.create_task(passwords.verify("user", "first"))
        while not gate.begun.is_set():
            await asyncio.sleep(0)
        second = asyncio.create_task(passwords.verify("user", "second"))
        third = asyncio.create_task(passwords.verify("user", "third"))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        gate.opened.set()
        assert await first
        assert await third

    asyncio.run(one_goes())
    assert gate.secrets == [b"first", b"third"]


def test_closing_waits_for_one_hash_and_cancels_the_others(path: Path, gate: Gate) -> None:
    write(path, line("user", digest=bytes(16)))
    passwords = Passwords(path)

    def close() -> bool:
        passwords.close()
        return gate.opened.is_set()

    async def close_meanwhile() -> None:
        first = asyncio.create_task(passwords.verify("user", "first"))
        while not gate.begun.is_set():
            await asyncio.sleep(0)
        second = asyncio.create_task(passwords.verify("user", "second"))
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(close))
        await asyncio.wait([second])
        assert second.cancelled()
        gate.opened.set()
        assert await closing
        assert await first

    asyncio.run(close_meanwhile())
    assert gate.secrets == [b"first"]


def http_connect(**options: Any) -> OpenTarget:
    pytest.importorskip("h11", reason="it is what the proxy parses requests with")
    from freebsd_splice.proxies.connect import http_connect

    return http_connect(**options)


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        (
            http_connect,
            b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic YTpi\r\n\r\n",
        ),
        (socks5_connect, b"\5\1\2\1\1a\1b"),
    ],
)
def test_it_is_the_clients_turn_that_its_password_takes(
    proxy: Callable[..., OpenTarget],
    said: bytes,
    read: Callable[..., Passwords],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passwords = read(entry("user", "secret"))
    asked: list[tuple[str, str, str]] = []

    async def verify_nobody(user: str, password: str, client: str = "") -> bool:
        asked.append((user, password, client))
        return False

    monkeypatch.setattr(passwords, "verify", verify_nobody)

    async def main() -> None:
        async with running(ProxyServer(proxy(passwords=passwords))) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(said)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), PATIENCE)
            writer.close()

    asyncio.run(main())
    assert asked == [("a", "b", "127.0.0.1")]
