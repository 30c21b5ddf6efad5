"""The samples of the five calls in PowerShell and C# are parsed. Those in curl and Python are run by a journey."""

import pathlib
import unittest

import tree_sitter
import tree_sitter_c_sharp
import tree_sitter_powershell

SAMPLES = pathlib.Path(__file__).resolve().parents[2] / "infra" / "five-calls"
GRAMMARS = {".cs": tree_sitter_c_sharp.language(), ".ps1": tree_sitter_powershell.language()}


def errors(source, suffix):
    """Yields the lines that the grammar does not understand, from 1 on."""
    parser = tree_sitter.Parser(tree_sitter.Language(GRAMMARS[suffix]))
    nodes = [parser.parse(source).root_node]
    while nodes:
        node = nodes.pop()
        if node.is_error or node.is_missing:
            yield node.start_point.row + 1
        nodes += node.children


class Samples(unittest.TestCase):
    def test_samples_without_an_interpreter_here_are_well_formed(self):
        for suffix in GRAMMARS:
            files = sorted(SAMPLES.rglob(f"*{suffix}"))
            self.assertTrue(files, suffix)
            for file in files:
                with self.subTest(file.relative_to(SAMPLES)):
                    source = file.read_bytes()
                    self.assertEqual(list(errors(source, suffix)), [])
                    # A sample that lacks its last brace is not.
                    self.assertNotEqual(list(errors(source[: source.rindex(b"}")], suffix)), [])


if __name__ == "__main__":
    unittest.main()
