"""What `licences.py` lets pass, and what not."""

import unittest

import licences

ALLOWED = {"MIT", "ISC", "Apache-2.0 WITH LLVM-exception"}


class Licences(unittest.TestCase):
    def test_an_expression_is_met_by_what_is_allowed(self):
        for expression in (
            "MIT", "MIT/GPL-3.0", "GPL-3.0 OR MIT", "MIT AND ISC", "(GPL-3.0 OR MIT) AND ISC",
            "Apache-2.0 WITH LLVM-exception", "GPL-3.0 AND LGPL-3.0 OR MIT",
        ):
            self.assertTrue(licences.permitted(expression, ALLOWED), expression)
        for expression in ("GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "(MIT OR ISC) AND AGPL-3.0", "AGPL-3.0/GPL-3.0"):
            self.assertFalse(licences.permitted(expression, ALLOWED), expression)
        for expression in ("", "MIT OR", "(MIT", "MIT ISC"):
            with self.assertRaises(ValueError):
                licences.permitted(expression, ALLOWED)

    def test_no_licence_and_no_registry_are_faults(self):
        package = {"name": "a", "version": "1", "license": "MIT", "source": "registry+somewhere"}
        self.assertEqual(licences.faults([package, {**package, "source": None}], ALLOWED), [])
        self.assertEqual(len(licences.faults([{**package, "license": None, "source": "git+somewhere"}], ALLOWED)), 2)

    def test_the_list_has_nothing_of_the_gpl_family(self):
        allowed = licences.allowed_licences((licences.ROOT / "deny.toml").read_text(encoding="utf-8"))
        self.assertGreater(len(allowed), 5)
        self.assertFalse([name for name in allowed if "GPL" in name])


if __name__ == "__main__":
    unittest.main()
