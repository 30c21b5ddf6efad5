# Deploys a release of Mandate as a CloudFormation stack, so that Terraform and CloudFormation users have the same,
# tested template. Terraform sees one resource; what changes inside is CloudFormation's, with its canary and rollback.

locals {
  zips     = fileset(var.release, "*-${var.architecture}-*.zip")
  template = "template-${var.architecture}.json"
}

data "aws_s3_bucket" "artifacts" {
  bucket = var.artifact_bucket
}

resource "aws_s3_object" "zip" {
  for_each    = local.zips
  bucket      = var.artifact_bucket
  key         = "${var.artifact_prefix}${each.value}"
  source      = "${var.release}/${each.value}"
  source_hash = filesha256("${var.release}/${each.value}")

  # A rollback of CloudFormation needs the zips of the release before. They go when the update of the stack has ended well.
  lifecycle {
    create_before_destroy = true
  }
}

# The template is larger than a request may be. Its name holds its digest, because CloudFormation compares the URL.
resource "aws_s3_object" "template" {
  bucket       = var.artifact_bucket
  key          = "${var.artifact_prefix}template-${var.architecture}-${filesha256("${var.release}/${local.template}")}.json"
  source       = "${var.release}/${local.template}"
  content_type = "application/json"
}

resource "aws_cloudformation_stack" "mandate" {
  name         = var.stack_name
  template_url = "https://${data.aws_s3_bucket.artifacts.bucket_regional_domain_name}/${aws_s3_object.template.key}"
  capabilities = ["CAPABILITY_IAM"]
  tags         = var.tags

  parameters = merge(var.parameters, {
    ArtifactBucket = var.artifact_bucket
    ArtifactPrefix = var.artifact_prefix
  })

  depends_on = [aws_s3_object.zip]
}
