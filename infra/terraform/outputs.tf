output "outputs" {
  description = "The stack's outputs by name, e.g. ApiUrl, IncidentBucketName, EventBusName."
  value       = aws_cloudformation_stack.mandate.outputs
}

output "stack_id" {
  description = "The id of the CloudFormation stack."
  value       = aws_cloudformation_stack.mandate.id
}
