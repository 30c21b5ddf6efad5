variable "stack_name" {
  description = "The name of the CloudFormation stack, in lower case. All names in AWS begin with it."
  type        = string
}

variable "release" {
  description = "The folder of a release: zips, templates and SHA256SUMS."
  type        = string
}

variable "architecture" {
  description = "arm64 or x86_64."
  type        = string
  default     = "arm64"

  validation {
    condition     = contains(["arm64", "x86_64"], var.architecture)
    error_message = "The architecture is arm64 or x86_64."
  }
}

variable "artifact_bucket" {
  description = "An existing bucket of the region, for the zips and the template."
  type        = string
}

variable "artifact_prefix" {
  description = "The folder in that bucket, with a slash at its end, or empty."
  type        = string
  default     = "mandate/"
}

variable "parameters" {
  description = "Parameters of the template by name; infra/README.md describes them. PartnerName is required."
  type        = map(string)

  validation {
    condition     = contains(keys(var.parameters), "PartnerName")
    error_message = "PartnerName is required."
  }
}

variable "tags" {
  description = "Tags of the stack and of all that it creates."
  type        = map(string)
  default     = {}
}
