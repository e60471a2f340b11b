# Sourced by train.sh and test.sh: takes the config from the front of the arguments, configs/Gan.yaml if none is there.

config="$root/configs/Gan.yaml"
case "${1-}" in
    *.yaml | *.yml)
        config=$1
        shift
        ;;
esac
