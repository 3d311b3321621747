"""What several findings of the doctor advise."""

OPEN = "open all TCP ports between the nodes of the cluster: Ray, Gloo and NCCL choose them freely"
