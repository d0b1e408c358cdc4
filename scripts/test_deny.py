"""What `deny.py` says when the database of advisories is there, old, or out of reach."""

import pathlib
import re
import tempfile
import unittest

import deny


class Deny(unittest.TestCase):
    def test_what_could_not_be_looked_for_is_never_a_success(self):
        for status, fetched, days, code in (
            (0, True, 1, 0), (0, False, deny.OLD_DAYS, 0),
            (1, True, 1, 1), (1, False, 1, 1), (1, True, 400, 1),
            (1, False, None, deny.NOT_CHECKED), (0, False, None, deny.NOT_CHECKED),
            (0, True, None, deny.NOT_CHECKED), (0, True, deny.OLD_DAYS + 1, deny.NOT_CHECKED),
        ):
            found, said = deny.verdict(status, fetched, days)
            self.assertEqual(found, code, (status, fetched, days))
            self.assertEqual(bool(said), code != 0)

    def test_a_folder_that_is_no_copy_has_no_age(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertIsNone(deny.age(pathlib.Path(folder)))
            self.assertIsNone(deny.age(pathlib.Path(folder) / "missing"))

    def test_the_list_of_licences_has_nothing_of_the_gpl_family(self):
        text = (deny.ROOT / "deny.toml").read_text(encoding="utf-8")
        section = text.split("[licenses]", 1)[1].split("\n[", 1)[0]
        allowed = re.findall(r'^    "([^"]+)"', section, re.M)
        self.assertGreater(len(allowed), 5)
        self.assertFalse([name for name in allowed if "GPL" in name])

    def test_an_advisory_is_passed_over_with_its_reason(self):
        text = (deny.ROOT / "deny.toml").read_text(encoding="utf-8")
        section = text.split("[advisories]", 1)[1].split("\n[", 1)[0]
        passed = re.findall(r'\{ id = "RUSTSEC-\d{4}-\d{4}", reason = "[^"]{40,}" \}', section)
        self.assertEqual(len(passed), section.count("RUSTSEC"))


if __name__ == "__main__":
    unittest.main()
