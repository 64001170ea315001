"""Load generator: four keep-alive clients in a closed loop, and a fixed list of requests for each.

Reads SERVICE_HOST and SERVICE_PORT; LOAD_MIX, LOAD_REQUESTS (measured, over all clients),
LOAD_WARMUP (before that, not timed) and LOAD_SEED. Prints `key=value` lines.

Every client has sources, categories and request ids of its own, so that the answers do not depend
on how the clients interleave: `response_digest` is the same for every correct server. Answers are
hashed as parsed JSON, and only after the clock has stopped.
"""

import hashlib
import json
import os
import random
import socket
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

CLIENTS = 4
CATEGORIES_PER_CLIENT = 1
BUCKETS = 200
READINGS_PER_BATCH = 130
TIMEOUT_SECONDS = 30.0

# How often each kind of request occurs, of the 260 that a client sends in the default run. Other
# mixes may have any sum: the list is dealt out again, shuffled, until there are enough.
MIXES: dict[str, dict[str, int]] = {
    "mixed": {
        "ingest": 24,
        "stats": 54,
        "history": 12,
        "orders": 50,
        "report": 20,
        "timeline": 10,
        "search": 24,
        "catalogue": 32,
        "price": 1,
        "settings": 27,
        "notify": 6,
    },
    "writes": {
        "ingest": 60,
        "stats": 4,
        "history": 4,
        "orders": 4,
        "catalogue": 8,
        "price": 10,
        "settings": 4,
        "notify": 6,
    },
}

# What differs from run to run by the nature of the thing, and is left out of the digest.
VOLATILE = frozenset({"sent_ns"})


class Script:
    """One client's list of requests, made before the clock starts."""

    def __init__(self, client: int, mix: str, count: int, seed: int) -> None:
        self.client = client
        self.rng = random.Random(f"{seed}/{mix}/{client}")
        self.source = f"source-{client}"
        self.versions = 0
        self.next_identifier = 0
        self.sent = 0
        weights = MIXES[mix]
        # The exact mix, shuffled: shares drawn by chance would differ from client to client.
        deck = [kind for kind in weights for _ in range(weights[kind])]
        kinds: list[str] = []
        while len(kinds) < count:
            self.rng.shuffle(deck)
            kinds += deck
        first = [self.encode_ingest()]  # the source must exist before it is read
        self.requests = (first + [getattr(self, f"encode_{kind}")() for kind in kinds])[:count]

    def get(self, path: str, **query: object) -> bytes:
        self.sent += 1
        words = "".join(f"&{name}={value}" for name, value in query.items())
        target = f"/{path}?rid=c{self.client}-{self.sent:05d}{words}"
        return f"GET {target} HTTP/1.1\r\nHost: pyserver\r\n\r\n".encode()

    def post(self, path: str, body: Any) -> bytes:
        self.sent += 1
        data = json.dumps(body).encode()
        head = (
            f"POST /{path}?rid=c{self.client}-{self.sent:05d} HTTP/1.1\r\nHost: pyserver\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data

    def skewed(self, count: int) -> int:
        """Small numbers more often than large ones, as with real customers."""
        return int(count * self.rng.random() ** 3)

    def category(self) -> str:
        own = self.client * CATEGORIES_PER_CLIENT + self.rng.randrange(CATEGORIES_PER_CLIENT)
        return f"category-{own:02d}"

    def encode_ingest(self) -> bytes:
        readings = []
        for _ in range(READINGS_PER_BATCH):
            if self.next_identifier and self.rng.random() < 0.1:
                identifier = self.rng.randrange(self.next_identifier)
            else:
                identifier = self.next_identifier
                self.next_identifier += 1
            reading = [
                f"{self.source}/{identifier:06d}",
                self.rng.randrange(BUCKETS),
                self.rng.randrange(10_000),
            ]
            readings.append(reading)
        self.versions += 1
        return self.post("ingest", {"source": self.source, "readings": readings})

    def encode_stats(self) -> bytes:
        return self.get("stats", source=self.source)

    def encode_history(self) -> bytes:
        return self.get("history", source=self.source, version=self.rng.randint(0, self.versions))

    def encode_orders(self) -> bytes:
        return self.get("orders", customer=self.skewed(120))

    def encode_report(self) -> bytes:
        return self.get(
            "report", region=f"region-{self.skewed(40):02d}", quarter=self.rng.randint(1, 4)
        )

    def encode_timeline(self) -> bytes:
        return self.get("timeline", region=f"region-{self.rng.randrange(40):02d}")

    def encode_search(self) -> bytes:
        first = self.rng.choice(("ka", "Lo", "mi", "ne", "ru", "sa", "bar", "den"))
        return self.get("search", q=first + self.rng.choice(("t", "vo", "ze", "go", "mi")))

    def encode_catalogue(self) -> bytes:
        return self.get("catalogue", category=self.category(), page=self.rng.randrange(2))

    def encode_price(self) -> bytes:
        sku = f"{self.category()}/{self.rng.randrange(40):02d}"
        return self.post("price", {"sku": sku, "cents": self.rng.randint(100, 9999)})

    def encode_settings(self) -> bytes:
        return self.get("settings", key=self.rng.choice(("currency", "results_shown")))

    def encode_notify(self) -> bytes:
        return self.post("notify", {"source": self.source, "text": "x" * self.rng.randrange(80)})


@dataclass
class Client:
    """One connection: the next request leaves when the answer to the last one is complete."""

    requests: list[bytes]
    address: tuple[str, int]
    answers: list[tuple[int, bytes]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    failures: int = 0

    def connect(self) -> None:
        self.connection = socket.create_connection(self.address, timeout=TIMEOUT_SECONDS)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def run(self, requests: list[bytes]) -> None:
        for request in requests:
            start = time.perf_counter()
            try:
                self.connection.sendall(request)
                answer = self.receive()
            except (OSError, ValueError) as error:
                self.failures += 1
                answer = (0, repr(error).encode())
                self.connection.close()
                try:
                    self.connect()
                except OSError:
                    # Nobody listens any more: what is left has failed too.
                    self.failures += len(requests) - requests.index(request) - 1
                    return
            self.seconds.append(time.perf_counter() - start)
            self.answers.append(answer)
            if answer[0] not in (0, 200):
                self.failures += 1

    def receive(self) -> tuple[int, bytes]:
        data = self.buffer
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self.more()
        head = data[:end].decode("latin-1")
        status = int(head.split(" ", 2)[1])
        for line in head.split("\r\n"):
            name, _, value = line.partition(":")
            if name.lower() == "content-length":
                size = int(value)
                break
        else:
            raise ValueError("an answer without Content-Length")
        complete = end + 4 + size
        while len(data) < complete:
            data += self.more()
        self.buffer = data[complete:]
        return status, data[end + 4 : complete]

    def more(self) -> bytes:
        chunk = self.connection.recv(1 << 16)
        if not chunk:
            raise ConnectionError("the server closed the connection")
        return chunk


def canonical(body: bytes) -> bytes:
    """Parsed JSON in one fixed form; what is not JSON stays as it is."""

    def without_volatile(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in pairs if name not in VOLATILE}

    try:
        value = json.loads(body, object_pairs_hook=without_volatile)
    except ValueError:
        return body
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest(clients: list[Client]) -> str:
    """In the order of clients and of their requests, not of time."""
    whole = hashlib.sha256()
    for client in clients:
        for status, body in client.answers:
            whole.update(b"%d\n%s\n" % (status, canonical(body)))
    return whole.hexdigest()


def percentile(ordered: list[float], percent: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def together(clients: list[Client], slices: list[list[bytes]]) -> float:
    """Run one list of requests per client, all at once; return the wall time."""
    threads = [
        threading.Thread(target=client.run, args=(requests,))
        for client, requests in zip(clients, slices, strict=True)
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def main() -> int:
    environment = os.environ
    mix = environment.get("LOAD_MIX", "mixed")
    measured = int(environment.get("LOAD_REQUESTS", "1000"))
    warmup = int(environment.get("LOAD_WARMUP", "40"))
    seed = int(environment.get("LOAD_SEED", "1"))
    address = (environment.get("SERVICE_HOST", "127.0.0.1"), int(environment["SERVICE_PORT"]))

    per_client = -(-measured // CLIENTS)
    skipped = -(-warmup // CLIENTS)
    scripts = [Script(n, mix, skipped + per_client, seed) for n in range(CLIENTS)]
    clients = [Client(script.requests, address) for script in scripts]
    for client in clients:
        client.connect()
    together(clients, [client.requests[:skipped] for client in clients])
    for client in clients:
        client.seconds.clear()
    wall = together(clients, [client.requests[skipped:] for client in clients])

    requests = CLIENTS * (skipped + per_client)
    failures = sum(client.failures for client in clients)
    seconds = sorted(second for client in clients for second in client.seconds)
    if not seconds:
        print("load.py: no request was answered", file=sys.stderr)
        return 1
    print(f"clients={CLIENTS}")
    print(f"total_requests={CLIENTS * per_client}")
    print(f"latency_mean_ms={statistics.fmean(seconds) * 1000:.4f}")
    print(f"latency_p50_ms={percentile(seconds, 50) * 1000:.4f}")
    print(f"latency_p99_ms={percentile(seconds, 99) * 1000:.4f}")
    print(f"throughput_rps={len(seconds) / wall:.2f}")
    print(f"error_rate={failures / requests:.6f}")
    print(f"response_digest={digest(clients)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
