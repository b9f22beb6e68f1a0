"""What the supervisor tests deploy instead of the stacks: one route, and one stream with its function."""

import os
import sys

from plain_aws import Aws

from localcloud.functions import REGION
from localcloud.processes import report_ready


def main() -> None:
    """Deploy to the endpoint named on the command line; a broken app is one that cannot be deployed."""
    aws = Aws(sys.argv[sys.argv.index("--endpoint") + 1])
    if "broken" in sys.argv:
        sys.exit("the template is wrong: line 7")
    aws.function("echo", "http_handlers.echo", {"APP": "fake"})
    gateway = aws.client("apigatewayv2")
    api = gateway.create_api(Name="api", ProtocolType="HTTP")["ApiId"]
    gateway.create_stage(ApiId=api, StageName="$default", AutoDeploy=True)
    arn = f"arn:aws:lambda:{REGION}:{aws.account}:function:echo"
    made = gateway.create_integration(
        ApiId=api, IntegrationType="AWS_PROXY", IntegrationUri=arn, PayloadFormatVersion="2.0"
    )
    gateway.create_route(
        ApiId=api, RouteKey="GET /api/echo/{surface}", Target=f"integrations/{made['IntegrationId']}"
    )
    aws.function(
        "follow", "stream_handlers.record", {"SEEN": os.path.join(os.environ["NARROWS_HOME"], "seen")}
    )
    aws.mapping("follow", aws.stream("events"))
    outputs = {"Stream": "events"}
    if "--search-url" in sys.argv:
        outputs["Search"] = sys.argv[sys.argv.index("--search-url") + 1]
    report_ready(outputs={"Fake": outputs})


if __name__ == "__main__":
    main()
