"""customerio (PyPI): an event starts a campaign, whose mail comes when its time has come."""

import unittest

import support
from customerio.track import CustomerIO

setUpModule = support.trust_the_fake

DAY = 86_400
CAMPAIGN = {
    "id": 1,
    "name": "Follow-up",
    "event_name": "order_placed",
    "actions": [
        {
            "id": 10,
            "type": "conditional_wait",
            "delay": DAY,
            "multi_conditions": [{"event": {"name": "order_shipped"}}],
            "paths": [
                [{"id": 11, "type": "email", "subject": "On its way", "body": "<p>!</p>"}],
                [
                    {
                        "id": 12,
                        "type": "email",
                        "subject": "{{event.id}} is late",
                        "body": "<p>?</p>",
                    }
                ],
            ],
        }
    ],
}


class Journeys(unittest.TestCase):
    def setUp(self):
        self.addCleanup(support.reset)
        self.addCleanup(support.seed, {})
        support.seed({"campaigns": [CAMPAIGN]})
        support.fetch("PUT", "/__parlel/clock", {"freeze": True})
        self.client = CustomerIO("site", "key", host=support.HOST, port=support.PORT, retries=0)
        self.client.base_url = support.base_url("http") + "/api/v1"
        self.client.identify("7", email="ada@example.com")
        self.client.track("7", "order_placed", {"id": "A1"})

    def subjects(self):
        rows = support.control("deliveries")["deliveries"]
        return [row["rendered"]["subject"] for row in rows]

    def test_whoever_waits_gets_what_fits(self):
        self.assertEqual(self.subjects(), [])
        self.client.track("7", "order_shipped")
        self.assertEqual(self.subjects(), ["On its way"])

    def test_after_a_day_it_is_late(self):
        support.fetch("PUT", "/__parlel/clock", {"advance": DAY})
        self.assertEqual(self.subjects(), ["A1 is late"])
        (journey,) = support.control("journeys?state=finished")["journeys"]
        self.assertEqual(journey["steps"][0]["outcome"], "timed_out")


if __name__ == "__main__":
    unittest.main()
