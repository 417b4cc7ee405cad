"""Tests of how scripts/gallery compares numbers."""

import importlib.machinery
import importlib.util
import pathlib
import unittest

PATH = pathlib.Path(__file__).resolve().parents[3] / "scripts" / "gallery"
LOADER = importlib.machinery.SourceFileLoader("gallery", str(PATH))
gallery = importlib.util.module_from_spec(importlib.util.spec_from_loader("gallery", LOADER))
LOADER.exec_module(gallery)


def number(text):
    return gallery.parse(text)[1][0]


def agree(a, b):
    return gallery.agree(number(a), number(b))


def differences(quoted, computed):
    return gallery.differences(quoted.splitlines(), computed.splitlines())[0]


class Numbers(unittest.TestCase):
    def test_errors(self):
        for text, value, error in [("0.123(4)", 0.123, 0.004), ("0.0(1.5)e-07", 0, 1.5e-7), ("4.4(1.3)", 4.4, 1.3),
                                   ("-12(3)", -12, 3), ("1.50(12)e+03", 1500, 120)]:
            self.assertAlmostEqual(number(text).value, value)
            self.assertAlmostEqual(number(text).error / error, 1)
        self.assertIsNone(number("0.5").error)

    def test_names_are_words(self):
        words, numbers = gallery.parse("  W2 h_3 [0,1]   0.5,  n^-1 1.2.3 x5")
        self.assertEqual(words, "W2 h_3 [#,#] #, n^# 1.2.3 x5")
        self.assertEqual([x.value for x in numbers], [0, 1, 0.5, -1])

    def test_within_four_combined_errors(self):
        self.assertTrue(agree("0.123(3)", "0.142(4)"))  # 19 against 4 sqrt(3^2 + 4^2) = 20
        self.assertFalse(agree("0.123(3)", "0.144(4)"))
        self.assertTrue(agree("0.12(1)", "0.15"))
        self.assertFalse(agree("0.12(1)", "0.17"))

    def test_without_errors(self):
        self.assertTrue(agree("0.123456789012", "0.123456789013"))
        self.assertFalse(agree("0.123456789012", "0.123458789012"))
        self.assertTrue(agree("1.00000000000", "1.00000050000"))
        self.assertFalse(agree("1.00000000000", "1.00000200000"))
        self.assertTrue(agree("0.025", "0.026"))  # both rounded
        self.assertFalse(agree("0.025", "0.027"))
        self.assertFalse(agree("128", "129"))


class Lines(unittest.TestCase):
    TABLE = "loss  2 widths\n  width  mean\n  128  0.51(2)  0.3\n  512  0.42(1)  0.2\n limit  0.4\nend"

    def test_the_same(self):
        self.assertEqual(differences(self.TABLE, self.TABLE), [])

    def test_lines_left_out(self):
        self.assertEqual(differences("loss  2 widths\n...\n  512  0.42(1)  0.2\n...\nend", self.TABLE), [])
        self.assertEqual(len(differences("loss  2 widths\n  512  0.42(1)  0.2", self.TABLE)), 1)  # no "..."

    def test_what_differs(self):
        self.assertEqual(differences("...\n  512  0.48(1)  0.2\n limit  0.4", self.TABLE),
                         ["0.48(1) is now 0.42(1) in: 512  0.48(1)  0.2"])
        self.assertEqual(differences("...\n limit  0.4\nlast", self.TABLE), ["not in the output: last"])
        self.assertEqual(len(differences("end\n...\n limit  0.4", self.TABLE)), 1)  # order counts

    def test_cost_is_not_compared(self):
        self.assertEqual(differences("time 3.0 s, memory 10 MB", "time 4.0 s, memory 12 MB"), [])


if __name__ == "__main__":
    unittest.main()
