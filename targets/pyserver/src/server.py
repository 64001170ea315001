"""A small shop's back office over HTTP: orders, reports, readings, catalogue, search.

    python server.py --host 127.0.0.1 --port 0 --audit audit.log [--config config.json]

Prints `ready HOST:PORT` when it accepts connections, and ends on SIGTERM.
"""

import argparse
import signal
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import replies
from archive import REGIONS, Archive
from audit import AuditLog
from catalogue import Catalogue
from encoding import decode, encode
from ledger import Ledger
from messages import BadRequest, Reply, Request
from notify import Notifier
from orders import Orders
from replies import ReplyCache
from search import Search
from settings import Settings


class Service:
    """The endpoints: one method each, from a request to a payload that JSON can carry."""

    def __init__(self, config: str, audit: str) -> None:
        self.settings = Settings(config)
        self.audit = AuditLog(audit)
        self.ledger = Ledger(self.audit)
        self.archive = Archive()
        self.orders = Orders()
        self.catalogue = Catalogue()
        self.search = Search()
        self.notifier = Notifier()
        self.cache = ReplyCache()
        self.routes: dict[tuple[str, str], Callable[[Request, dict[str, Any]], Any]] = {
            ("GET", "/health"): self.get_health,
            ("GET", "/settings"): self.get_settings,
            ("GET", "/orders"): self.get_orders,
            ("GET", "/report"): self.get_report,
            ("GET", "/timeline"): self.get_timeline,
            ("GET", "/search"): self.get_search,
            ("GET", "/catalogue"): self.get_catalogue,
            ("POST", "/price"): self.post_price,
            ("POST", "/ingest"): self.post_ingest,
            ("GET", "/stats"): self.get_stats,
            ("GET", "/history"): self.get_history,
            ("POST", "/notify"): self.post_notify,
        }

    def answer(self, request: Request) -> Reply:
        route = self.routes.get((request.method, request.path))
        if route is None:
            return Reply(request, 404, {"error": f"no {request.method} {request.path}"})
        try:
            return Reply(request, 200, route(request, self.settings.current()))
        except BadRequest as error:
            return Reply(request, 400, {"error": str(error)})

    def get_health(self, request: Request, settings: dict[str, Any]) -> Any:
        return {
            "cache_entries": len(self.cache),
            "cache_capacity": replies.CAPACITY,
            "messages_sent": self.notifier.sent(),
        }

    def get_settings(self, request: Request, settings: dict[str, Any]) -> Any:
        key = request.text("key")
        if key not in settings:
            raise BadRequest(f"there is no setting {key!r}")
        return {"key": key, "value": settings[key]}

    def get_orders(self, request: Request, settings: dict[str, Any]) -> Any:
        customer = request.number("customer")
        return self.cache.get_or_make(
            request.path, request.query, lambda: self.orders.of_customer(customer)
        )

    def get_report(self, request: Request, settings: dict[str, Any]) -> Any:
        region = self.region(request)
        quarter = request.number("quarter")
        if not 1 <= quarter <= 4:
            raise BadRequest(f"there is no quarter {quarter}")
        return self.cache.get_or_make(
            request.path, request.query, lambda: self.archive.report(region, quarter)
        )

    def get_timeline(self, request: Request, settings: dict[str, Any]) -> Any:
        return self.archive.timeline(self.region(request))

    def get_search(self, request: Request, settings: dict[str, Any]) -> Any:
        return self.search.find(request.text("q"), settings["results_shown"])

    def get_catalogue(self, request: Request, settings: dict[str, Any]) -> Any:
        return self.catalogue.page(
            request.text("category"),
            request.number("page"),
            settings["products_per_page"],
            request.query.get("rid", ""),
        )

    def post_price(self, request: Request, settings: dict[str, Any]) -> Any:
        body = decode(request.body)
        return self.catalogue.set_price(body["sku"], body["cents"])

    def post_ingest(self, request: Request, settings: dict[str, Any]) -> Any:
        body = decode(request.body)
        if len(body["readings"]) > settings["readings_per_batch"]:
            raise BadRequest(f"more than {settings['readings_per_batch']} readings in one batch")
        return self.ledger.ingest(body["source"], [tuple(row) for row in body["readings"]])

    def get_stats(self, request: Request, settings: dict[str, Any]) -> Any:
        return self.ledger.statistics(request.text("source"))

    def get_history(self, request: Request, settings: dict[str, Any]) -> Any:
        return self.ledger.history(
            request.text("source"), request.number("version"), settings["buckets_shown"]
        )

    def post_notify(self, request: Request, settings: dict[str, Any]) -> Any:
        body = decode(request.body)
        return self.notifier.send(body["source"], body["text"])

    def region(self, request: Request) -> str:
        region = request.text("region")
        if region not in REGIONS:
            raise BadRequest(f"there is no region {region!r}")
        return region


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave in one write
    service: Service

    def do_GET(self) -> None:
        self.handle_request()

    def do_POST(self) -> None:
        self.handle_request()

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        target = urlsplit(self.path)
        query = dict(parse_qsl(target.query))
        request = Request(self.command, target.path, query, body)
        reply = self.service.answer(request)
        self.send(reply.status, encode(query.get("rid"), reply.payload))

    def send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged; accepted readings are, in the audit log."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--audit", required=True)
    parser.add_argument("--config", default=str(Path(__file__).with_name("config.json")))
    options = parser.parse_args()

    Handler.service = Service(options.config, options.audit)
    server = Server((options.host, options.port), Handler)

    def stop(signum: int, frame: FrameType | None) -> None:
        # shutdown() waits for serve_forever(), which runs in this very thread.
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    host, port = server.server_address[:2]
    print(f"ready {host!s}:{port}", flush=True)
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    Handler.service.audit.close()


if __name__ == "__main__":
    main()
