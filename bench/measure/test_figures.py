"""Tests of the arithmetic and the drawings: python3 -m unittest discover -s bench/measure -t bench"""

import unittest
import xml.etree.ElementTree as xml

from measure import figures, flame, plots


def side(ios, iops, p99):
    return {"total_ios": ios, "io_bytes": ios * 4096, "iops": iops, "bw_bytes": iops * 4096,
            "clat_ns": {"percentile": {"50.000000": 10_000, "99.000000": p99, "99.900000": 2 * p99}}}


def report(read, write, error=0):
    return {"jobs": [{"jobname": "j", "error": error, "read": read, "write": write, "usr_cpu": 30.0, "sys_cpu": 70.0}]}


NONE = {"total_ios": 0}


def rounds(*iops, p99=100.0):
    return [{"iops": value, "MBps": value / 250, "p99_us": p99} for value in iops]


class Figures(unittest.TestCase):
    def test_a_run_counts_both_sides_and_tells_the_worse_latency(self):
        found = figures.of_fio(report(side(300, 700.0, 50_000), side(100, 300.0, 90_000)), 0.2, 2048)
        self.assertEqual((found["iops"], found["p99_us"], found["p99.9_us"]), (1000.0, 90.0, 180.0))
        self.assertAlmostEqual(found["cpu_us_per_request"], 500.0)
        self.assertAlmostEqual(found["cpu_s_per_gib"], 0.2 / (400 * 4096 / 2**30))
        self.assertEqual((found["peak_mib"], found["client_cpus"]), (2.0, 1.0))

    def test_a_run_that_failed_is_no_figure(self):
        for bad in (report(side(1, 1.0, 1), NONE, error=5), report(NONE, NONE)):
            with self.assertRaises(figures.Unusable):
                figures.of_fio(bad, 0, 0)

    def test_a_pause_of_the_machine_is_seen(self):
        paused = report({**side(1, 1.0, 1), "runtime": 69_823}, NONE)
        sound = report({**side(1, 1.0, 1), "runtime": 1_006}, NONE)
        self.assertEqual([figures.was_paused(found, 1) for found in (paused, sound)], [True, False])

    def test_medians_spreads_and_ratios(self):
        results = {("r", "sealvol"): rounds(90, 150, 100), ("r", "nbdkit-file"): rounds(50, 40, 80)}
        self.assertEqual(figures.median(results["r", "sealvol"], "iops"), 100)
        self.assertAlmostEqual(figures.spread(results["r", "sealvol"]), 0.6)
        self.assertEqual(figures.ratio(results, "r", "sealvol", "nbdkit-file"), 2.0)
        self.assertIsNone(figures.ratio(results, "r", "sealvol", "ceiling"))

    def test_a_goal_is_met_at_its_ratio_or_near_the_ceiling(self):
        row = "randread-4k.d32.c1"
        results = {(row, "sealvol"): rounds(140), (row, "nbdkit-file"): rounds(100), (row, "ceiling"): rounds(200)}
        self.assertEqual(figures.verdicts(results, row, "memory"), [(">= 1.5 x nbdkit-file", False)])
        results[row, "ceiling"] = rounds(150)
        self.assertEqual(figures.verdicts(results, row, "memory"), [(">= 1.5 x nbdkit-file", True)])
        self.assertEqual(figures.verdicts(results, row, "disk"), [])

    def test_at_depth_one_the_goal_is_latency(self):
        row = "randread-4k.d1.c1"
        results = {(row, "sealvol"): rounds(1, p99=104.0), (row, "nbdkit-file"): rounds(9)}
        self.assertEqual(figures.verdicts(results, row, "memory"), [("p99 <= 1.05 x nbdkit-file", True)])
        results[row, "sealvol"] = rounds(1, p99=120.0)
        self.assertFalse(figures.verdicts(results, row, "memory")[0][1])

    def test_the_table_has_a_line_for_each_row(self):
        results = {("a", "A"): rounds(10.0), ("a", "B"): rounds(20.0), ("b", "A"): rounds(1.0), ("b", "B"): rounds(1234.0)}
        lines = figures.ratio_table(results, "memory").splitlines()
        self.assertEqual(lines[0], "| row | A IOPS | MB/s | p99 us | spread | / B | goals |")
        self.assertEqual(lines[2], "| a | 10.0 | 0.04 | 100 | 0% | 0.50 |  |")
        self.assertEqual(len(lines), 4)


class Drawings(unittest.TestCase):
    def test_plots_are_xml(self):
        drawn = plots.bars("a < b & c", [("row", [("nbdkit", 1.5), ("ceiling", None)])])
        self.assertIn("1.50", "".join(xml.fromstring(drawn).itertext()))

    def test_stacks_are_folded_from_the_root(self):
        script = "w 1 [0] 1.0: 1 cycles:\n\tff leaf+0x1 (/bin/x)\n\tfe root (/bin/x)\n\nw 1 [0] 1.1: 1 cycles:\n\tfe root (/bin/x)\n\n"
        self.assertEqual(flame.folded(script), {("w", "root", "leaf"): 1, ("w", "root"): 1})

    def test_a_flame_is_as_wide_as_its_samples(self):
        drawn = xml.fromstring(flame.svg({("main", "a"): 3, ("main", "b<c>"): 1}, "title"))
        widths = {node[0].text.split(":")[0]: float(node[1].get("width")) for node in drawn if node.tag.endswith("}g")}
        self.assertAlmostEqual(widths["a"], 3 * widths["b<c>"], places=0)


if __name__ == "__main__":
    unittest.main()
