"""RayCluster and RayJob as KubeRay 1.6.2 has them: names and types of all fields of their specs.

Ours, written down from KubeRay's API reference, because no package on PyPI or npm carries the
schema itself. Kubernetes drops a field that it does not know without a word, so none is allowed
here. Pod templates are objects here: the schema of Kubernetes itself is for them.
"""

from typing import Any

Schema = dict[str, Any]

BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number", "minimum": 0}
STRING: Schema = {"type": "string"}
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}
OF_KUBERNETES: Schema = {"type": "object"}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def fields(required: str = "", /, **properties: Schema) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


MANAGER = one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
REDIS_CREDENTIAL = fields(value=STRING, valueFrom=OF_KUBERNETES)
DELETION = one_of("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone")

HEAD_GROUP = fields(
    "template",
    enableIngress=BOOLEAN,
    headService=OF_KUBERNETES,
    labels=STRINGS,
    rayStartParams=STRINGS,
    resources=STRINGS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    template=OF_KUBERNETES,
)

WORKER_GROUP = fields(
    "groupName minReplicas maxReplicas template",
    groupName=STRING,
    idleTimeoutSeconds=COUNT,
    labels=STRINGS,
    maxReplicas=COUNT,
    minReplicas=COUNT,
    numOfHosts=COUNT,
    rayStartParams=STRINGS,
    replicas=COUNT,
    resources=STRINGS,
    scaleStrategy=fields(workersToDelete=array(STRING)),
    suspend=BOOLEAN,
    template=OF_KUBERNETES,
)

CLUSTER_SPEC = fields(
    "headGroupSpec",
    authOptions=fields(
        mode=one_of("disabled", "token"), secretName=STRING, enableK8sTokenAuth=BOOLEAN
    ),
    autoscalerOptions=fields(
        env=array(OF_KUBERNETES),
        envFrom=array(OF_KUBERNETES),
        idleTimeoutSeconds=COUNT,
        image=STRING,
        imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
        resources=OF_KUBERNETES,
        securityContext=OF_KUBERNETES,
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        version=one_of("v1", "v2"),
        volumeMounts=array(OF_KUBERNETES),
    ),
    enableInTreeAutoscaling=BOOLEAN,
    gcsFaultToleranceOptions=fields(
        "redisAddress",
        externalStorageNamespace=STRING,
        redisAddress=STRING,
        redisPassword=REDIS_CREDENTIAL,
        redisUsername=REDIS_CREDENTIAL,
    ),
    headGroupSpec=HEAD_GROUP,
    headServiceAnnotations=STRINGS,
    managedBy=MANAGER,
    rayVersion=STRING,
    suspend=BOOLEAN,
    upgradeStrategy=fields(type=one_of("Recreate", "None")),
    workerGroupSpecs=array(WORKER_GROUP),
)

JOB_SPEC = fields(
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    clusterSelector=STRINGS,
    deletionStrategy=fields(
        onSuccess=fields(policy=DELETION),
        onFailure=fields(policy=DELETION),
        deletionRules=array(
            fields(
                "policy condition",
                policy=DELETION,
                condition=fields(jobStatus=STRING, jobDeploymentStatus=STRING, ttlSeconds=COUNT),
            )
        ),
    ),
    entrypoint=STRING,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    entrypointResources=STRING,
    jobId=STRING,
    managedBy=MANAGER,
    metadata=STRINGS,
    preRunningDeadlineSeconds=COUNT,
    rayClusterSpec=CLUSTER_SPEC,
    runtimeEnvYAML=STRING,
    shutdownAfterJobFinishes=BOOLEAN,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    submitterConfig=fields(backoffLimit=COUNT),
    submitterPodTemplate=OF_KUBERNETES,
    suspend=BOOLEAN,
    ttlSecondsAfterFinished=COUNT,
)

# KubeRay makes names of pods and services of these, and allows 47 characters of a DNS label.
NAME: Schema = {"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$"}


def kind(name: str, spec: Schema) -> Schema:
    return fields(
        "apiVersion kind metadata spec",
        apiVersion=one_of("ray.io/v1"),
        kind=one_of(name),
        metadata=fields("name", name=NAME, namespace=STRING, labels=STRINGS, annotations=STRINGS),
        spec=spec,
    )


SCHEMAS = {"RayCluster": kind("RayCluster", CLUSTER_SPEC), "RayJob": kind("RayJob", JOB_SPEC)}
