"""What must hold whatever is asked: no lost update, settings seen at once, bounds, the gateway."""

# ruff: noqa: PT009 - the standard library alone runs these, and its plain assert shows no values

import itertools
import threading
import unittest
from collections.abc import Callable
from pathlib import Path

from service import Client, Service

THREADS = 8


def together(service: Service, work: Callable[[int, Client], None]) -> None:
    """Run `work` in THREADS threads with a connection each; the first error is raised here."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number, service.client())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class Rules(unittest.TestCase):
    def test_no_update_is_lost_and_the_audit_log_is_complete(self) -> None:
        each = 200

        def work(number: int, client: Client) -> None:
            for count in range(each):
                reading = [f"{number}-{count}", number, 1]
                # The second reading is the same for all threads, and counts for one of them.
                both = [reading, [f"shared-{count}", 99, 1]]
                client.post("/ingest", {"source": "all", "readings": both})

        with Service() as service:
            together(service, work)
            client = service.client()
            total = THREADS * each + each
            self.assertEqual(client.get("/stats", source="all")["count"], total)
            history = client.get("/history", source="all", version=THREADS * each)
            self.assertEqual(history["count"], total)
            self.assertEqual(history["largest"][0]["count"], each)
            self.assertEqual(service.stop(), 0, "exit code after SIGTERM")
            lines = service.audit.read_text().splitlines()
            identifiers = [line.split(" ")[2] for line in lines]
            self.assertEqual(len(identifiers), total)
            self.assertEqual(len(set(identifiers)), total)
            for number in range(THREADS):
                own = [name for name in identifiers if name.startswith(f"id={number}-")]
                self.assertEqual(own, [f"id={number}-{count}" for count in range(each)])
            form = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ source=all id=\S+ bucket=\d+ value=1$"
            for line in lines:
                self.assertRegex(line, form)

    def test_changed_settings_are_seen_by_the_next_request(self) -> None:
        with Service() as service:
            client = service.client()
            settings = {
                "results_shown": 10,
                "products_per_page": 5,
                "readings_per_batch": 2,
                "buckets_shown": 5,
            }
            # Renamed in quick succession and of equal size: the time of change may not tell them.
            for shown in (3, 4, 5, 6):
                service.replace_settings({**settings, "results_shown": shown})
                self.assertEqual(client.get("/settings", key="results_shown")["value"], shown)
                self.assertEqual(len(client.get("/search", q="k")["best"]), shown)
            for size in (2, 3, 4):
                service.replace_settings({**settings, "products_per_page": size})
                page = client.get("/catalogue", category="category-01", page=0)
                self.assertEqual(len(page["products"]), size)
            too_many = {"source": "s", "readings": [["a", 1, 1], ["b", 1, 1], ["c", 1, 1]]}
            status, _ = client.refused("POST", "/ingest", too_many)
            self.assertEqual(status, 400)

    def test_a_price_is_seen_on_the_next_page(self) -> None:
        with Service() as service:
            client = service.client()
            for cents in (5, 4, 3):
                client.get("/catalogue", category="category-02", page=0)
                client.post("/price", {"sku": "category-02/07", "cents": cents})
                first = client.get("/catalogue", category="category-02", page=0)["products"][0]
                self.assertEqual((first["sku"], first["cents"]), ("category-02/07", cents))

    def test_statistics_follow_each_batch(self) -> None:
        with Service() as service:
            client = service.client()
            for count in range(1, 6):
                client.post("/ingest", {"source": "s", "readings": [[str(count), 1, count]]})
                for _ in range(2):
                    self.assertEqual(client.get("/stats", source="s")["maximum"], count)

    def test_the_reply_cache_keeps_to_its_capacity(self) -> None:
        # The capacity itself is the operator's decision, and no patch may change it.
        with Service() as service:

            def work(number: int, client: Client) -> None:
                for count in range(135):
                    customer = 1_000_000 + 1000 * number + count
                    self.assertEqual(client.get("/orders", customer=customer)["orders"], [])

            together(service, work)
            client = service.client()
            health = client.get("/health")
            self.assertEqual(health["cache_capacity"], 1024)
            self.assertEqual(health["cache_entries"], 1024)
            self.assertEqual(len(client.get("/orders", customer=1)["orders"]), 28)

    def test_messages_leave_the_gateway_apart(self) -> None:
        sent: list[int] = []

        def work(number: int, client: Client) -> None:
            for _ in range(5):
                answer = client.post("/notify", {"source": str(number), "text": "hello"})
                sent.append(answer["sent_ns"])

        with Service() as service:
            together(service, work)
            self.assertEqual(service.client().get("/health")["messages_sent"], len(sent))
        sent.sort()
        gaps = [later - earlier for earlier, later in itertools.pairwise(sent)]
        self.assertGreaterEqual(min(gaps), 2_000_000)

    def test_all_work_is_done_in_one_process(self) -> None:
        # CPU time and memory are read from the server process; work elsewhere would go uncounted.
        with Service() as service:
            client = service.client()
            client.get("/search", q="ka")
            tasks = Path(f"/proc/{service.process.pid}/task")
            children = [(task / "children").read_text().strip() for task in tasks.iterdir()]
            self.assertEqual([c for c in children if c], [])


if __name__ == "__main__":
    unittest.main()
