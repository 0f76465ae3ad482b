FROM base
COPY --from=0 --chown=$USER:$GROUP --chmod=u=rwX,go=rX a b c/
COPY --parents --exclude=**/*.md --exclude=docs ./x/./y /z/
COPY ["name with space", "/a \"b\"/"]
COPY "quoted name" unquoted\ name dest/
ADD --checksum=sha256:24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d https://example.org/x.tar.xz /
ADD --unpack=false https://example.org/x.git#main /src
RUN --network=none --mount=type=secret,id=tok,required=true,env=TOKEN --mount=type=ssh -- make
RUN ["/bin/sh", "-c", "echo \"exec form\""]
RUN [ "$A" = b ] && echo "a test, no array"
