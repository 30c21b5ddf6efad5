"""What the guides name exists: parameters, outputs, alarms and other resources, saved queries, pages and their sections.

    python -m unittest discover -s tests/devstack

The commands of `mandate` in the guides are tested beside its arguments.
"""

import glob
import os
import re
import unittest

import botocore.session
from botocore import xform_name

from template_case import TEMPLATE, TemplateCase

INFRA = os.path.dirname(TEMPLATE)
ROOT = os.path.join(INFRA, "..")
GUIDES = ("README.md", "acceptance.md", "five-calls.md", "runbook.md", "entra/README.md")
# A block of code.
FENCE = re.compile(r"^ *```.*?```$", re.DOTALL | re.MULTILINE)
# Words of AWS in the form of ours.
OF_AWS = {"AccessDenied", "ConcurrentExecutions", "GetSecretValue", "PutEvents", "VersionId"}
# Options of every command, of those that have pages, and of the commands that are the CLI's own.
ALWAYS = {"output", "query", "cli-binary-format", "max-items"}
OF_THE_CLI = {
    "s3 cp": {"recursive", "exclude", "include"},
    "cloudformation deploy": {
        *("template-file", "s3-bucket", "stack-name", "capabilities", "no-fail-on-empty-changeset"),
        "parameter-overrides",
    },
}
# Services and options that have another name than the service's own.
SERVICES = {"deploy": "codedeploy", "s3api": "s3"}
RENAMED = {"sns subscribe": {"notification-endpoint"}}
# Parameters of the packaged template alone.
OF_A_RELEASE = {"ArtifactBucket", "ArtifactPrefix"}


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def anchor(heading):
    """Returns the anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


class Guides(TemplateCase):
    def setUp(self):
        self.guides = {name: read(os.path.join(INFRA, name)) for name in GUIDES}

    def spans(self):
        """Yields each piece of code in the guides' sentences, with its page."""
        for name, text in self.guides.items():
            for span in re.findall(r"`([^`\n]+)`", re.sub(FENCE, "", text)):
                yield name, span

    def test_outputs_exist(self):
        asked = {name for text in self.guides.values() for name in re.findall(r'\boutput "?([A-Z]\w*)', text)}
        self.assertGreater(len(asked), 20)
        self.assertEqual(asked - set(self.source["Outputs"]), set())

    def test_parameters_exist(self):
        given = {match[1] for _, span in self.spans() if (match := re.fullmatch(r"([A-Z][a-z]\w*)=\S*", span))}
        for text in self.guides.values():
            for line in re.findall(r"--parameter-overrides (.*)", text):
                given |= set(re.findall(r"(\w+)=", line))
            for row in re.findall(r"^\| ((?:`[A-Z][a-z]\w*`(?:, )?)+) \|", text, re.MULTILINE):
                given |= set(re.findall(r"`(\w+)`", row))
        self.assertGreater(len(given), 25)
        self.assertEqual(given - set(self.source["Parameters"]) - OF_A_RELEASE, set())

    def test_every_other_name_is_in_the_template(self):
        known = set(re.findall(r"\w+", read(TEMPLATE))) | OF_AWS | OF_A_RELEASE
        for page, span in self.spans():
            if re.fullmatch(r"[A-Z][a-z0-9]+(?:[A-Z][A-Za-z0-9]*)+", span):
                self.assertTrue(span in known, f"{page}: {span}")
            # `…Errors` stands for the alarms that end so.
            elif match := re.fullmatch(r"…([A-Z]\w+)", span):
                names = [*self.source["Resources"], *self.source["Outputs"]]
                self.assertTrue(any(match[1] in name for name in names), f"{page}: {span}")

    def test_saved_queries_are_those_of_the_template(self):
        (listed,) = re.findall(r"in the folder of the stack's name: (.*?)[.] A\s", self.guides["runbook.md"], re.DOTALL)
        queries = self.properties_of("AWS::Logs::QueryDefinition").values()
        names = {query["Name"]["Fn::Sub"].removeprefix("${AWS::StackName}/") for query in queries}
        self.assertEqual(set(re.findall(r"`([^`]+)`", " ".join(listed.split()))), names)

    def test_commands_of_aws_exist_with_their_options(self):
        session, models, checked = botocore.session.get_session(), {}, 0
        code = []
        for text in self.guides.values():
            code += re.findall(FENCE, text)
            # A command of a sentence may be broken over two lines.
            code += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", re.sub(FENCE, "", text))]
        code = "\n".join(code).replace("\\\n", " ")
        for service, operation, rest in re.findall(r"\baws ([a-z0-9]+) ([a-z0-9-]+)(.*)", code):
            command = f"{service} {operation}"
            own = re.split(r"; | && |\)|\| ", rest)[0]
            options = set(re.findall(r" --([a-z][a-z0-9-]*)", own)) - ALWAYS
            if command in OF_THE_CLI:
                known = OF_THE_CLI[command]
            else:
                model = models.setdefault(service, session.get_service_model(SERVICES.get(service, service)))
                if operation == "wait":
                    name = own.split()[0].title().replace("-", "")
                    operation = xform_name(session.get_waiter_model(service).get_waiter(name).operation, "-")
                operations = {xform_name(name, "-"): name for name in model.operation_names}
                self.assertTrue(operation in operations, command)
                shape = model.operation_model(operations[operation]).input_shape
                members = {xform_name(name, "-") for name in shape.members} if shape else set()
                known = members | {f"no-{name}" for name in members} | RENAMED.get(command, set())
            self.assertEqual(options - known, set(), f"aws {command}")
            checked += 1
        self.assertGreater(checked, 40)

    def test_links_between_pages_lead_somewhere(self):
        links = 0
        for page in glob.glob(os.path.join(ROOT, "**", "*.md"), recursive=True):
            if "/target/" in page or "/node_modules/" in page:
                continue
            text = re.sub(FENCE, "", read(page))
            for target in re.findall(r"\]\(([^)\s]+)\)", text):
                if re.match(r"[a-z]+:", target):
                    continue
                path, _, section = target.partition("#")
                path = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
                self.assertTrue(os.path.exists(path), f"{page}: {target}")
                if section and path.endswith(".md"):
                    anchors = {anchor(heading) for heading in re.findall(r"^#+ (.+)$", read(path), re.MULTILINE)}
                    self.assertTrue(section in anchors, f"{page}: {target}")
                links += 1
        self.assertGreater(links, 100)


if __name__ == "__main__":
    unittest.main()
