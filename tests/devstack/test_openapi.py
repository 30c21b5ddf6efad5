"""The description of the HTTP API against the template that deploys it."""

import json
import os
import unittest

from template_case import PUBLIC, ROUTES

DESCRIPTION = os.path.join(os.path.dirname(__file__), "..", "..", "infra", "openapi.json")


class OpenApi(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with open(DESCRIPTION, encoding="utf-8") as file:
            cls.api = json.load(file)
        cls.operations = {
            (method.upper(), path): operation
            for path, methods in cls.api["paths"].items()
            for method, operation in methods.items()
        }

    def test_operations_are_the_routes_of_the_template(self):
        self.assertEqual(set(self.operations), set().union(*ROUTES.values()))

    def test_each_operation_has_the_security_of_its_route(self):
        for (method, path), operation in self.operations.items():
            if (method, path) in PUBLIC:
                self.assertEqual(operation["security"], [], path)
                continue
            self.assertEqual(operation["security"], [{"iam": []}, {"jwt": []}], path)
            scope = "mandate.token" if path.endswith("/token") else "mandate.read" if method == "GET" else "mandate.operate"
            self.assertEqual(operation["x-scope"], scope, path)

    def test_each_json_operation_has_examples(self):
        for (method, path), operation in self.operations.items():
            bodies = [operation.get("requestBody", {})] + [
                response for status, response in operation["responses"].items() if status.startswith("2")
            ]
            for body in bodies:
                for media_type, content in body.get("content", {}).items():
                    self.assertIn("example", content, f"{method} {path} {media_type}")

    def test_path_parameters_are_described(self):
        for (method, path), operation in self.operations.items():
            parameters = [
                self.api["components"]["parameters"][one["$ref"].rsplit("/", 1)[1]] if "$ref" in one else one
                for one in operation.get("parameters", [])
            ]
            in_path = {one["name"] for one in parameters if one["in"] == "path"}
            self.assertEqual(in_path, {part[1:-1] for part in path.split("/") if part.startswith("{")}, f"{method} {path}")


if __name__ == "__main__":
    unittest.main()
